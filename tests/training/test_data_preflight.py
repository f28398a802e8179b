"""The warnings of a preflight about a run's data, and its refusals before the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from adapterhub.core.errors import Invalid
from registry.models import Adapter, BaseModel, Cluster, Replica
from tests.builders import write_jsonl
from tests.tiny_model import save_base_model
from training.models import Dataset, TrainingRun
from training.planning import preflight
from training.runs.launch import launch_run


@pytest.fixture
def talking(db_or_fresh: None) -> BaseModel:
    model = BaseModel.objects.create(slug="talking", source="talking")
    save_base_model(model.folder)
    model.inspect()
    return model


@pytest.fixture
def plan(project: Any, talking: BaseModel, alice: User, tmp_path: Path) -> Any:
    adapter = Adapter.objects.create(project=project, base_model=talking, slug="spoken")

    def planned(rows: list[Any], **chosen: Any) -> TrainingRun:
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        data = Dataset.create(project=project, name="rows", file=file, filename="rows.jsonl", by=alice.as_actor())
        return TrainingRun.planned(by=alice.as_actor(), adapter=adapter, dataset=data, hyperparameters=chosen)

    return planned


def long_prompts(count: int, size: int) -> list[dict[str, str]]:
    return [{"prompt": f"{n} " + "bank " * size, "completion": "shall report"} for n in range(count)]


def test_what_is_cut_left_out_and_without_its_end_is_told(plan: Any) -> None:
    short = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    long_answers = [{"prompt": f"the {n}", "completion": "risk " * 60} for n in range(20)]
    forecast = preflight.data(plan([*short, *long_prompts(20, 60), *long_answers], max_length=32))
    assert forecast["rows"] == 54
    assert forecast["verdict"] == "cut"
    assert (forecast["left_out"] + forecast["without_end"], forecast["cut"]) == (forecast["cut"], forecast["cut"])
    assert forecast["text"].startswith("Of 54 rows ")


def test_a_run_without_a_trainable_row_is_refused_before_the_queue(plan: Any, alice: User) -> None:
    run = plan(long_prompts(40, 60), max_length=32)
    with pytest.raises(Invalid, match="No row of rows can be trained") as caught:
        launch_run(
            by=alice.as_actor(),
            adapter=run.adapter,
            dataset=run.dataset,
            hyperparameters={"max_length": 32},
            anyway=True,
        )
    assert (caught.value.field, caught.value.code) == ("hyperparameters.max_length", "nothing_to_train")
    assert not TrainingRun.objects.exists()


def test_a_length_over_the_models_is_refused_and_the_default_keeps_within(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    with pytest.raises(Invalid, match="talking reads at most 128 tokens"):
        preflight.require_trainable(plan(rows, max_length=129))
    assert plan(rows).hyperparameters["max_length"] == 128


@pytest.mark.parametrize(
    ("lengths", "length", "verdict"),
    [((), 64, "unknown"), ((64, 128), 64, "fits"), ((64, 128), 100, "tight"), ((64, 96), 100, "will not fit")],
)
def test_a_length_over_the_engines_is_refused_with_theirs(
    plan: Any, alice: User, lengths: tuple[int, ...], length: int, verdict: str
) -> None:
    run = plan([{"prompt": f"a {n}", "completion": "bank"} for n in range(20)], max_length=length)
    cluster = Cluster.create(project=run.project, slug="cpu", base_model=run.base_model, by=alice.as_actor())
    for place, served in enumerate(lengths):
        replica = Replica.objects.create(cluster=cluster, url=f"http://127.0.0.1:{9000 + place}")
        replica.saw({}, "0.32.0", max_length=served)
    need = preflight.needs(run)["serving"]
    assert (need["verdict"], need["lengths"]) == (verdict, sorted(lengths))
    if verdict == "will not fit":
        assert "max_length 100 is over what the engines of talking serve: 96 tokens." in need["text"]
        with pytest.raises(Invalid) as caught:
            preflight.require(run)
        assert caught.value.field == "hyperparameters.max_length"


def test_memory_follows_the_rows_and_not_the_limit(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    assert preflight.row_length(plan(rows, max_length=128)) == 4
    assert preflight.row_length(plan(rows, max_length=128, packing=1)) == 128


def test_what_the_template_does_not_render_is_refused_by_name(plan: Any) -> None:
    call = {"function": {"name": "lookup", "arguments": "{}"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"a {n}"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        }
        for n in range(20)
    ]
    with pytest.raises(Invalid, match="does not render tool_calls") as caught:
        preflight.require_trainable(plan(rows))
    assert caught.value.field == "dataset"


def test_preference_pairs_are_no_data_of_a_run(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "chosen": "bank", "rejected": "risk"} for n in range(20)]
    with pytest.raises(Invalid, match="preference pairs"):
        plan(rows)


def test_it_says_how_often_the_data_are_read(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    assert "The run reads the data 2.0 times." in preflight.data(plan(rows, steps=9, batch_size=4))["text"]
    by_epochs = plan(rows, epochs=3, batch_size=4)
    assert preflight.data(by_epochs)["reads"] == 3
    assert preflight.planned_tokens(by_epochs) == 3 * 18 * 4


def test_the_best_weights_are_counted_into_the_disk(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    plain, curved = (preflight.needs(plan(rows, **chosen))["disk"]["bytes"] for chosen in ({}, {"eval_steps": 2}))
    assert curved > plain


@pytest.mark.parametrize(
    ("method", "chosen", "field"),
    [
        ("full", {"lora_dropout": 0.1}, "lora_dropout"),
        ("galore", {"lora_dropout": 0.1}, "lora_dropout"),
        ("galore", {"weight_decay": 0.1}, "weight_decay"),
    ],
)
def test_what_a_method_does_not_have_is_refused_by_name(
    plan: Any, alice: User, method: str, chosen: dict[str, float], field: str
) -> None:
    run = plan([{"prompt": f"a {n}", "completion": "bank"} for n in range(20)])
    with pytest.raises(Invalid, match=f"{field} has no effect with {method}") as caught:
        TrainingRun.planned(
            by=alice.as_actor(), adapter=run.adapter, dataset=run.dataset, method=method, hyperparameters=chosen
        )
    assert caught.value.field == f"hyperparameters.{field}"


def test_the_preflight_measures_what_the_loss_counts(plan: Any) -> None:
    answers = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bank"}]
    rows = [
        {"messages": [{"role": "user", "content": f"the {n}"}, {"role": "assistant", "content": "bank"}, *answers * 5]}
        for n in range(20)
    ]
    assert preflight.data(plan(rows, max_length=16))["left_out"] == 0
    assert preflight.data(plan(rows, max_length=16, loss="last_answer"))["left_out"] == 18


def test_an_early_stop_needs_a_curve(plan: Any) -> None:
    rows = [{"prompt": f"a {n}", "completion": "bank"} for n in range(20)]
    assert plan(rows, eval_steps=2, sharded=1).hyperparameters["eval_steps"] == 2
    with pytest.raises(Invalid) as caught:
        plan(rows, patience=2)
    assert (caught.value.field, caught.value.code) == ("hyperparameters.eval_steps", "bad_curve")


def test_a_validation_dataset_is_evaluated_on_whole(plan: Any, project: Any, alice: User, tmp_path: Path) -> None:
    rows = [{"prompt": f"Validation question {n}?", "completion": "risk"} for n in range(50)]
    file = write_jsonl(tmp_path / "own.jsonl", rows)
    own = Dataset.create(project=project, name="own", file=file, filename="own.jsonl", by=alice.as_actor())
    trained = plan([{"prompt": f"a {n}", "completion": "bank"} for n in range(20)])
    run = TrainingRun.planned(
        by=alice.as_actor(), adapter=trained.adapter, dataset=trained.dataset, validation_dataset=own
    )
    whole = Path(run.recipe(tmp_path)["eval"]).read_text().splitlines()
    assert len(whole) == 50
    assert run.lineage()["validation_dataset"] == own.digest
    with pytest.raises(Invalid, match="name another") as caught:
        TrainingRun.planned(by=alice.as_actor(), adapter=trained.adapter, dataset=own, validation_dataset=own)
    assert caught.value.field == "validation_dataset"
