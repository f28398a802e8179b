"""Numbers and words of adapterhub.yaml as people write them: taken for what they look like, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.cli.declaration import Declaration, read
from adapterhub.cli.exit_codes import Ended
from adapterhub.core.errors import Invalid
from adapterhub.core.yaml_loader import loaded
from training.models.hyperparameters import with_defaults

WHOLE = """\
adapter: {slug: dora}
base: tiny
data: rows.jsonl
"""
ROLLOUT = "rollout: {alias: compliance, steps: [{weight: 5}]}"


def declared(folder: Path, *lines: str) -> Declaration:
    names = {line.partition(":")[0] for line in lines}
    others = [line for line in WHOLE.splitlines() if line.partition(":")[0] not in names]
    file = folder / "adapterhub.yaml"
    file.write_text("\n".join([*others, *lines]))
    return read(file)


@pytest.mark.parametrize(
    ("text", "number"),
    [("5e-4", 0.0005), ("1e-3", 0.001), (".5", 0.5), ("2E4", 20_000), ("1_000", 1000), ("010", 10), ("-3", -3)],
)
def test_a_number_is_what_it_looks_like(tmp_path: Path, text: str, number: float) -> None:
    assert declared(tmp_path, f"hyperparameters: {{x: {text}}}").hyperparameters == {"x": number}


def test_a_number_fits_every_field_of_numbers(tmp_path: Path) -> None:
    step = "{weight: 1e1, hold_s: 60.0, min_samples: 1e3, approval: yes}"
    file = declared(
        tmp_path,
        "mixture: [{dataset: 3.0, weight: 1e-1}]",
        "gates: {loss_below: 2e0, no_worse: no, tasks: [{task: law, at_least: {acc: 6e-1}}]}",
        f"rollout: {{alias: compliance, steps: [{step}], guardrails: [{{metric: error_rate, margin: 1e-1}}]}}",
    )
    assert file.rollout
    assert file.gates
    assert (file.mixture[0].dataset, file.mixture[0].weight) == (3, 0.1)
    assert (file.gates.loss_below, file.gates.no_worse, file.gates.tasks[0].at_least) == (2, False, {"acc": 0.6})
    assert file.rollout.steps[0].model_dump(exclude={"shadow"}) == {
        "weight": 10,
        "hold_s": 60,
        "min_samples": 1000,
        "approval": True,
    }
    assert file.rollout.guardrails[0].margin == 0.1


@pytest.mark.parametrize(("data", "name"), [("2", "2"), ("010", "10"), ("3.0", "3"), ("2026-11-30", "2026-11-30")])
def test_a_dataset_is_named_by_number_or_file(tmp_path: Path, data: str, name: str) -> None:
    assert declared(tmp_path, f"data: {data}").data == name


def test_a_text_that_looks_like_something_else_stays_as_it_is_written(tmp_path: Path) -> None:
    file = declared(
        tmp_path,
        "adapter: {slug: 007, description: 1.10, tags: [2026, 1.10, no, 2026-11-30, 12345e7]}",
        "base: 7",
        "project: 2026",
        "rollout: {alias: on, reason: 17, steps: [{weight: 5}]}",
    )
    assert file.rollout
    assert (file.adapter.slug, file.adapter.description, file.base, file.project) == ("007", "1.10", "7", "2026")
    assert file.adapter.tags == ["2026", "1.10", "no", "2026-11-30", "12345e7"]
    assert (file.rollout.alias, file.rollout.reason) == ("on", "17")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("data: 0", "data"),
        ("data: 1.5", "data"),
        ("data: true", "data"),
        ("hyperparameters: {modules: [q_proj]}", "hyperparameters.modules"),
        ("hyperparameters: {steps: }", "hyperparameters.steps"),
        (ROLLOUT.replace("5", "5, hold_s: 1:30"), "rollout.steps[0].hold_s"),
        (ROLLOUT.replace("5", "5, hold_s: 1.5"), "rollout.steps[0].hold_s"),
        (ROLLOUT.replace("5", "5 %"), "rollout.steps[0].weight"),
        (ROLLOUT.replace("5", ".nan"), "rollout.steps[0].weight"),
        ("adapter: {slug: true}", "adapter.slug"),
    ],
)
def test_what_is_no_such_value_is_refused_by_name(tmp_path: Path, line: str, field: str) -> None:
    with pytest.raises(Ended, match=f"adapterhub.yaml: {field.replace('[', '.').replace(']', '.')}: ") as refused:
        declared(tmp_path, line)
    assert str(refused.value).count("\n") == 0


def test_what_yaml_1_2_has_is_read_as_before() -> None:
    text = "a: &x {b: [1, -2, 0, +3], c: null, d: ~, e: , f: 'no', g: .inf, h: 0x1F}\ni: {<<: *x, c: True}\n"
    values: Any = loaded(text)
    assert values["a"] == {"b": [1, -2, 0, 3], "c": None, "d": None, "e": None, "f": "no", "g": 1e999, "h": "0x1F"}
    assert values["i"] == {**values["a"], "c": True}
    with pytest.raises(yaml.YAMLError):
        loaded("!!python/object/apply:os.getcwd []")


def test_the_server_takes_a_switch_as_a_flag_and_a_whole_number_in_any_form() -> None:
    chosen = with_defaults({"packing": True, "rslora": False, "steps": 1e3, "learning_rate": 1})
    assert [chosen[name] for name in ("packing", "rslora", "steps", "learning_rate")] == [1, 0, 1000, 1]
    assert not any(isinstance(value, bool) for value in chosen.values())
    for name, wrong in (("rank", True), ("steps", 10.5), ("learning_rate", True), ("packing", 2)):
        with pytest.raises(Invalid) as refused:
            with_defaults({name: wrong})
        assert refused.value.field == f"hyperparameters.{name}"
