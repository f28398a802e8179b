"""Runs on preference data: which method takes which dataset, defaults, the preflight, and a version at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, BaseModel
from tests.builders import write_jsonl
from tests.tiny_model import save_base_model
from training.models import Dataset, TrainingRun
from training.models.mixture import Mixed
from training.planning import preflight
from training.planning.memory_estimator import KNOWN, Plan, Shape, estimate
from training.runs.launch import launch_run
from training.runs.specification import body_of
from training.worker.runner import work

GOOD, BAD = "keep records of every risk", "harm clients or markets"


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"the {number} bank shall", "chosen": f"{number} {GOOD}", "rejected": BAD}


def answer(number: int) -> dict[str, Any]:
    return {"prompt": f"the {number} bank", "completion": GOOD if number % 2 else BAD, "label": bool(number % 2)}


def plain(number: int) -> dict[str, Any]:
    return {"prompt": f"the {number} bank", "completion": GOOD}


MAKERS = {"pairs": pair, "labels": answer, "answers": plain}


@pytest.fixture
def adapter(project: Any, db_or_fresh: None) -> Adapter:
    model = BaseModel.objects.create(slug="talking", source="talking")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return Adapter.objects.create(project=project, base_model=model, slug="preferred")


@pytest.fixture
def signed_in(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.fixture
def data(project: Any, alice: User, tmp_path: Path) -> Any:
    def made(kind: str, rows: list[Any] | None = None) -> Dataset:
        file = write_jsonl(tmp_path / f"{kind}.jsonl", rows or [MAKERS[kind](number) for number in range(60)])
        return Dataset.create(project=project, name=kind, file=file, filename=file.name, by=alice.as_actor())

    return made


@pytest.mark.parametrize(
    ("method", "kind", "code", "fragment"),
    [
        ("dpo", "answers", "no_preference_data", "dpo learns from preference pairs (chosen, rejected)"),
        ("dpo", "labels", "no_preference_data", "holds answers marked good or bad (label), but dpo"),
        ("kto", "answers", "no_preference_data", "or answers marked good or bad (label)"),
        ("lora", "pairs", "preference_data", "choose the method dpo or kto or orpo."),
        ("full", "labels", "preference_data", "choose the method kto."),
        ("dpo", "pairs", "", ""),
        ("kto", "pairs", "", ""),
        ("kto", "labels", "", ""),
    ],
)
def test_a_method_takes_its_kind_of_data(
    method: str, kind: str, code: str, fragment: str, adapter: Adapter, data: Any, alice: User
) -> None:
    wanted = {"adapter": adapter, "dataset": data(kind), "method": method, "by": alice.as_actor()}
    if not code:
        run = TrainingRun.planned(**wanted)
        assert (run.hyperparameters["learning_rate"], run.hyperparameters["beta"]) == (5e-6, 0.1)
        return
    with pytest.raises(Invalid) as refused:
        TrainingRun.planned(**wanted)
    assert (refused.value.field, refused.value.code) == ("dataset", code)
    assert fragment in refused.value.detail


@pytest.mark.parametrize(
    ("method", "chosen", "fragment"),
    [
        ("dpo", {"packing": 1}, "packing is not for dpo"),
        ("orpo", {"loss": "with_prompt"}, "loss is not for orpo"),
        ("kto", {"lora_dropout": 0.1}, "lora_dropout has no effect with kto"),
        ("dpo", {"desirable_weight": 2.0}, "desirable_weight is of kto"),
        ("kto", {"batch_size": 1}, "kto compares the answers of a batch"),
        ("dpo", {"beta": 0.0}, "beta is 0.0; it must lie between"),
    ],
)
def test_a_setting_that_the_method_does_not_know_is_refused(
    method: str, chosen: dict[str, Any], fragment: str, adapter: Adapter, data: Any, alice: User
) -> None:
    with pytest.raises(Invalid, match=fragment):
        TrainingRun.planned(
            adapter=adapter, dataset=data("pairs"), method=method, hyperparameters=chosen, by=alice.as_actor()
        )


@pytest.mark.parametrize(("method", "others"), [("dpo", "pairs"), ("kto", "labels"), ("orpo", "pairs")])
def test_preferences_are_mixed_with_their_own_kind(
    method: str, others: str, adapter: Adapter, data: Any, alice: User
) -> None:
    pairs, more = data("pairs"), data(others, [MAKERS[others](number) for number in range(60, 120)])
    wanted = {"adapter": adapter, "dataset": pairs, "method": method, "by": alice.as_actor()}
    run = TrainingRun.planned(mixture=[Mixed(more, 0.5)], **wanted)
    assert run.mixture == [{"dataset": more.pk, "weight": 0.5}]
    first, second = preflight.data(run)["datasets"]
    assert (first["share"], second["share"]) == (0.6667, 0.3333)
    with pytest.raises(Invalid, match=f"holds one answer for each row, but {method} learns from") as refused:
        TrainingRun.planned(mixture=[Mixed(data("answers"), 0.5)], **wanted)
    assert refused.value.field == "mixture.0.dataset"


def test_held_out_preferences_of_another_dataset_are_of_the_same_kind(adapter: Adapter, data: Any, alice: User) -> None:
    wanted = {"adapter": adapter, "dataset": data("pairs"), "method": "dpo", "by": alice.as_actor()}
    others = data("others", [pair(number) for number in range(60, 90)])
    assert TrainingRun.planned(validation_dataset=others, **wanted).validation_dataset == others
    with pytest.raises(Invalid, match="holds one answer for each row, but dpo learns from") as refused:
        TrainingRun.planned(validation_dataset=data("answers"), **wanted)
    assert refused.value.field == "validation_dataset"


def test_a_preference_setting_is_refused_with_a_plain_method(adapter: Adapter, data: Any, alice: User) -> None:
    with pytest.raises(Invalid, match="beta is of dpo, kto, orpo") as refused:
        TrainingRun.planned(
            adapter=adapter, dataset=data("answers"), hyperparameters={"beta": 0.5}, by=alice.as_actor()
        )
    assert refused.value.field == "hyperparameters.beta"


@pytest.mark.parametrize(
    ("method", "known", "code"),
    [
        ("dpo", {"columns": ["prompt", "chosen", "rejected"]}, ""),
        ("kto", {"columns": ["prompt", "completion", "label"]}, ""),
        ("orpo", {"columns": []}, ""),
        ("dpo", {"columns": ["prompt", "completion"]}, "no_preference_data"),
        ("lora", {"columns": ["prompt", "chosen", "rejected"]}, "preference_data"),
    ],
)
def test_a_plan_judges_the_data_by_the_method(
    method: str, known: dict[str, Any], code: str, adapter: Adapter, signed_in: Client
) -> None:
    body = {"project": adapter.project.slug, "adapter": {"slug": "new"}, "base": "talking", "method": method}
    answer = signed_in.post("/api/v1/plans/", {**body, **known}, content_type="application/json").json()
    assert [(one["field"], one["code"]) for one in answer["refusals"]] == ([("data", code)] if code else [])


def test_other_jobs_refuse_preferences_by_name(adapter: Adapter, data: Any, alice: User) -> None:
    with pytest.raises(Invalid, match="holds preference pairs") as refused:
        data("pairs").require_answers()
    assert refused.value.code == "preference_data"


def test_the_preflight_counts_both_sides_of_a_pair(adapter: Adapter, data: Any, alice: User) -> None:
    pairs, actor = data("pairs"), alice.as_actor()
    wanted = {"adapter": adapter, "dataset": pairs, "by": actor, "hyperparameters": {"steps": 27, "batch_size": 2}}
    dpo, kto = (TrainingRun.planned(method=method, **wanted) for method in ("dpo", "kto"))
    # Prompts of 4 tokens; answers of 6 and 4, each with its end token.
    assert preflight.row_length(dpo) == 4 + 6 + 1
    assert preflight.planned_tokens(dpo) == 27 * 2 * (11 + 9)
    assert preflight.planned_tokens(kto) == 27 * 2 * (11 + 9) / 2
    assert "The run reads the data 1.0 times." in preflight.data(dpo)["text"]
    assert "The run reads the data 0.5 times." in preflight.data(kto)["text"]
    assert preflight.check(dpo)["memory"]["bytes"] > 0


def test_pairs_without_an_answer_within_the_length_are_refused(adapter: Adapter, data: Any, alice: User) -> None:
    long = [{**pair(number), "prompt": f"{number} " + "bank " * 40} for number in range(20)]
    run = TrainingRun.planned(
        adapter=adapter,
        dataset=data("pairs", rows=long),
        method="dpo",
        hyperparameters={"max_length": 32},
        by=alice.as_actor(),
    )
    with pytest.raises(Invalid, match="No row of pairs can be trained"):
        preflight.require_trainable(run)


def test_the_reference_adds_no_second_model() -> None:
    shape = Shape.of(KNOWN["llama-3.1-8b"])
    lora, dpo = (estimate(shape, Plan(method, batch_size=2)) for method in ("lora", "dpo"))
    twice = estimate(shape, Plan("lora", batch_size=4))
    assert (dpo.weights, dpo.states) == (lora.weights, lora.states)
    assert dpo.activations == twice.activations


def test_the_adviser_ranks_what_learns_from_pairs(signed_in: Client, adapter: Adapter, data: Any) -> None:
    body = {"base_model": "talking", "device_gb": 80, "dataset": data("pairs").pk}
    advice = signed_in.post("/api/v1/advisor/", body, content_type="application/json").json()
    assert [row["method"] for row in advice["methods"]] == ["dpo", "kto", "orpo"]
    assert "It compares both answers of a pair" in advice["methods"][0]["reasons"][0]["text"]


def test_the_page_of_a_dataset_shows_both_answers(signed_in: Client, adapter: Adapter, data: Any) -> None:
    pairs = data("pairs")
    page = signed_in.get(f"/datasets/{pairs.pk}/").content.decode()
    assert f'class="completion">{BAD}</span' in page
    rendered = signed_in.get(f"/datasets/{pairs.pk}/?base_model=talking&max_length=64").content.decode()
    assert "chosen:" in rendered
    assert "rejected:" in rendered


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [("dpo", "pairs"), ("kto", "labels"), ("orpo", "pairs")])
def test_a_run_ends_in_a_version_with_its_rewards(
    method: str, kind: str, adapter: Adapter, data: Any, alice: User
) -> None:
    chosen = {"steps": 20, "learning_rate": 0.02, "max_length": 32, "eval_steps": 10}
    run = launch_run(
        adapter=adapter, dataset=data(kind), method=method, hyperparameters=chosen, by=alice.as_actor(), anyway=True
    )
    work()
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    assert run.version.method == method
    assert run.version.metrics["reward_margin"] > (0.05 if method == "orpo" else 0.3)
    assert run.loss_after < run.loss_before
    values = [metric.values for metric in run.metrics.all()]
    margins = [value["reward_margin"] for value in values if "reward_margin" in value]
    assert margins[-1] > margins[0]
    assert values[9]["held_out_reward_margin"] > 0
    assert body_of(run)["method"] == method
    assert not run.dataset.is_conversation()
