"""Estimates and advice over REST and on their page; what the preflight refuses; priority and limits of the queue."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.core.errors import Conflict, Invalid
from registry.models import Adapter
from tests.builders import CONFIG
from training.models import Dataset, Device, RankAnalysis, TrainingRun
from training.planning import estimator_inputs
from training.planning.memory_estimator import GB
from training.runs.launch import launch_run
from training.worker import queue

pytestmark = pytest.mark.django_db


@pytest.fixture
def signed_in(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def device(**fields: Any) -> Device:
    known = {
        "host": "box",
        "place": 0,
        "kind": "cuda",
        "name": "H100",
        "memory_bytes": 80 * 10**9,
        "free_bytes": 79 * 10**9,
        "disk_free_bytes": 10**12,
        "seen_at": now(),
    }
    return Device.objects.create(**{**known, **fields})


def ask(client: Client, name: str, **body: Any) -> Any:
    return client.post(reverse(f"api:{name}-list"), body, content_type="application/json")


def test_every_method_with_each_part_of_its_sum(signed_in: Client) -> None:
    answer = ask(
        signed_in,
        "estimate",
        base_model="llama-3.1-70b",
        device_gb=80,
        hyperparameters={"batch_size": 1, "recompute": 1},
    ).json()
    assert answer["parameters"] == 70_553_706_496
    by_method = {row["method"]: row for row in answer["methods"]}
    assert set(by_method) == {"lora", "qlora", "dora", "adalora", "galore", "full", "dpo", "kto", "orpo"}
    for row in by_method.values():
        assert sum(part["bytes"] for part in row["parts"]) == pytest.approx(row["bytes"], abs=10)
    assert (by_method["lora"]["verdict"], by_method["qlora"]["verdict"]) == ("will not fit", "fits")
    assert by_method["lora"]["largest_batch"] == 0 < by_method["qlora"]["largest_batch"]


def test_a_registered_model_and_a_bare_configuration_are_the_same(signed_in: Client, adapter: Adapter) -> None:
    named = ask(signed_in, "estimate", base_model=adapter.base_model.slug).json()
    assert named == ask(signed_in, "estimate", config=CONFIG).json()
    assert named["device_bytes"] is None
    assert {row["verdict"] for row in named["methods"]} == {None}
    device()
    assert ask(signed_in, "estimate", config=CONFIG).json()["device_bytes"] == 80 * GB


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "base_model"),
        ({"base_model": "nobody"}, "base_model"),
        ({"config": {"hidden_size": 8}}, "config"),
        ({"base_model": "llama-2-7b", "hyperparameters": {"rank": 0}}, "hyperparameters.rank"),
        ({"base_model": "llama-2-7b", "device_gb": -1}, "device_gb"),
    ],
)
def test_what_cannot_be_estimated_is_refused_by_field(signed_in: Client, body: dict[str, Any], field: str) -> None:
    answer = ask(signed_in, "estimate", **body)
    assert answer.status_code in (400, 422)
    assert answer.json()["errors"][0]["field"] == field


def test_advice_knows_the_rows_and_gives_reasons(signed_in: Client, dataset: Dataset, adapter: Adapter) -> None:
    answer = ask(signed_in, "advisor", base_model=adapter.base_model.slug, dataset=dataset.pk, device_gb=24).json()
    assert answer["known"]["rows"] == dataset.splits["train"]
    assert answer["methods"][0]["method"] == "lora"
    assert all(reason["text"] for method in answer["methods"] for reason in method["reasons"])
    refused = ask(signed_in, "advisor", base_model="llama-2-7b", dataset=10**6)
    assert refused.json()["errors"][0]["field"] == "dataset"


def test_the_shift_comes_from_the_newest_analysis_that_measured_it(
    dataset: Dataset, adapter: Adapter, alice: User
) -> None:
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 8},
        by=alice.as_actor(),
    )
    assert estimator_inputs.divergence(dataset, adapter.base_model) is None
    plan = {"modules": [{"divergence": 0.2}, {"divergence": 0.4}, {"divergence": None}]}
    RankAnalysis.objects.filter(pk=analysis.pk).update(status="succeeded", plan=plan)
    assert estimator_inputs.divergence(dataset, adapter.base_model) == pytest.approx(0.3)


def test_the_page_shows_verdicts_and_says_what_is_wrong(signed_in: Client, adapter: Adapter) -> None:
    form = {
        "base_model": "llama-3.1-8b",
        "device_gb": 24,
        "devices": 1,
        "rank": 16,
        "batch_size": 1,
        "max_length": 2048,
        "galore_rank": 64,
        "recompute": "on",
    }
    page = signed_in.get(reverse("estimates"), form).content.decode()
    assert "8,030,261,248 parameters" in page
    assert "will not fit" in page
    assert "gradients and optimiser" in page
    assert signed_in.get(reverse("estimates"), {**form, "rank": 0}).status_code == 422
    assert signed_in.get(reverse("estimates")).status_code == 200


def test_a_run_that_will_not_fit_is_refused_unless_anyway(dataset: Dataset, adapter: Adapter, alice: User) -> None:
    device(memory_bytes=10**9)
    fields = {
        "adapter": adapter,
        "dataset": dataset,
        "by": alice.as_actor(),
        "hyperparameters": {"batch_size": 1024, "max_length": 100_000},
    }
    with pytest.raises(Invalid, match=r"of the 1 GB of H100 of box\. With recompute = 1, batch_size \d+ fits\."):
        launch_run(**fields)
    assert not TrainingRun.objects.exists()
    assert launch_run(**fields, anyway=True).status == "queued"


def test_a_full_disk_is_seen_before_the_queue(dataset: Dataset, adapter: Adapter, alice: User) -> None:
    device(disk_free_bytes=1000)
    with pytest.raises(Invalid, match="Checkpoints take up to"):
        launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())


def test_the_urgent_job_is_claimed_first_and_a_project_keeps_its_limit(
    dataset: Dataset, adapter: Adapter, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"adapter": adapter, "dataset": dataset, "by": alice.as_actor()}
    first, second = launch_run(**fields), launch_run(**fields)
    urgent = launch_run(**fields, priority=5)
    monkeypatch.setattr(settings, "PROJECT_RUNNING", 2)
    assert queue.claim() == urgent
    assert queue.claim() == first, "the older of two equals"
    assert queue.claim() is None
    monkeypatch.setattr(settings, "PROJECT_RUNNING", 0)
    assert queue.claim() == second


def test_a_queue_that_is_full_says_so(
    dataset: Dataset, adapter: Adapter, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "PROJECT_QUEUED", 1)
    launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    with pytest.raises(Conflict, match="1 jobs waiting"):
        launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
