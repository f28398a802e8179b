"""A run by REST, by file and by page: cloned, compared, listened to."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.charts import MOST_POINTS
from registry.models import Adapter
from training.models import Dataset, RunMetric, TrainingRun
from training.pages.curves import curves, losses
from training.runs import specification
from training.runs.launch import launch_run


@pytest.fixture
def run(db: None, dataset: Dataset, adapter: Adapter, alice: User) -> TrainingRun:
    return launch_run(adapter=adapter, dataset=dataset, hyperparameters={"steps": 5}, by=alice.as_actor())


@pytest.fixture
def signed_in(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def post(client: Client, url: str, **body: Any) -> Any:
    return client.post(url, body, content_type="application/json")


def test_a_clone_differs_only_in_what_was_changed(signed_in: Client, run: TrainingRun) -> None:
    answer = post(signed_in, reverse("api:training-run-clone", args=[run.pk]), hyperparameters={"steps": 9}, priority=2)
    assert answer.status_code == 202
    url = reverse("api:training-run-compare", args=[run.pk])
    assert signed_in.get(url, {"to": answer.json()["id"]}).json()["differences"] == [
        {"name": "priority", "this": 0, "other": 2},
        {"name": "hyperparameters.steps", "this": 5, "other": 9},
    ]
    assert signed_in.get(url, {"to": "junk"}).json()["errors"][0]["field"] == "to"
    refused = post(signed_in, reverse("api:training-run-clone", args=[run.pk]), dataset=10**6)
    assert refused.json()["errors"][0]["field"] == "dataset"
    assert TrainingRun.objects.count() == 2


def test_the_page_of_a_clone_stands_filled_in_and_two_runs_stand_beside_each_other(
    signed_in: Client, run: TrainingRun
) -> None:
    page = signed_in.get(reverse("new-training-run"), {"clone": run.pk}).content.decode()
    assert 'name="steps" value="5"' in page
    assert signed_in.get(reverse("new-training-run"), {"clone": "junk"}).status_code == 404
    compare = reverse("compare-training-runs", args=[run.pk])
    assert b"Their settings are the same" in signed_in.get(compare).content
    assert signed_in.get(compare, {"to": "junk"}).status_code == 404


def test_four_runs_stand_side_by_side_with_their_curves_and_settings_in_words(
    signed_in: Client, run: TrainingRun, alice: User
) -> None:
    by = alice.as_actor()
    others = [
        launch_run(adapter=run.adapter, dataset=run.dataset, hyperparameters={"steps": 5, "packing": number % 2}, by=by)
        for number in range(1, 5)
    ]
    for number, each in enumerate((run, others[0])):
        RunMetric.objects.bulk_create(
            RunMetric(run=each, step=step, values={"loss": 3.0 - number - step / 10}) for step in range(3)
        )
    TrainingRun.objects.filter(pk=run.pk).update(loss_after=2.5)
    TrainingRun.objects.filter(pk=others[0].pk).update(loss_after=2.25)
    compare = reverse("compare-training-runs", args=[run.pk])
    answer = signed_in.get(compare, {"to": [each.pk for each in others[:3]]})
    page = answer.content.decode()
    assert "4 runs compared" in page
    [packing] = answer.context["different"]
    assert (packing["label"], packing["values"]) == ("packing", ["no", "yes", "no", "yes"])
    assert "fill every row" in packing["meaning"]
    [loss] = answer.context["curves"]
    assert (loss["title"], [line["number"] for line in loss["lines"]]) == ("Training loss", [0, 1])
    assert answer.context["best"] == others[0]
    assert "hyperparameters." not in page
    assert signed_in.get(compare, {"to": [each.pk for each in others]}).status_code == 422


def test_a_checked_form_queues_nothing_and_shows_the_same_run_as_a_file(
    signed_in: Client, run: TrainingRun, tmp_path: Path, alice: User
) -> None:
    form = {
        **run.hyperparameters,
        "adapter": run.adapter_id,
        "dataset": run.dataset_id,
        "method": "dora",
        "many_adapters": "on",
        "check": "1",
    }
    page = signed_in.post(reverse("new-training-run"), form)
    assert page.status_code == 200
    assert TrainingRun.objects.count() == 1
    preflight = page.context["preflight"]
    assert (preflight["memory"]["verdict"], preflight["queue"]["ahead"]) == ("unknown", 1)
    assert [row["method"] for row in page.context["advice"]["methods"]]
    part = signed_in.post(reverse("new-training-run"), form, headers={"HX-Request": "true"}).content
    assert b"What would change it" in part
    assert b"<h1>" not in part

    file = tmp_path / "run.yaml"
    file.write_text(page.context["twins"]["yaml"])
    call_command("train", str(file), user="alice", stdout=io.StringIO())
    by_file = TrainingRun.objects.first()
    words = shlex.split(page.context["twins"]["curl"])
    answer = signed_in.post("/api/v1/training-runs/", words[words.index("-d") + 1], content_type="application/json")
    by_curl = TrainingRun.objects.get(pk=answer.json()["id"])
    assert specification.differences(by_file, by_curl) == []
    assert by_file.method == "dora"


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"dataset": 10**6}, "dataset: There is no dataset"),
        ({"method": "magic"}, "method: "),
        ({"project": "nowhere"}, "project: "),
        ({"hyperparameters": {"rank": 0}}, "hyperparameters.rank: "),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_by_field(
    run: TrainingRun, tmp_path: Path, change: dict[str, Any], fragment: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**specification.body_of(run), **change}))
    with pytest.raises(CommandError, match=fragment):
        call_command("train", str(file), user="alice")


def test_a_file_is_run_for_those_who_may_train(run: TrainingRun, tmp_path: Path, bob: User) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(specification.body_of(run)))
    with pytest.raises(CommandError, match="this needs scope 'train' in project eu"):
        call_command("train", str(file), user="bob")


def test_a_preflight_stores_nothing(signed_in: Client, run: TrainingRun) -> None:
    answer = post(signed_in, reverse("api:training-run-preflight"), **specification.body_of(run))
    assert answer.status_code == 200
    assert set(answer.json()) == {"data", "memory", "time", "disk", "serving", "queue", "hyperparameters"}
    assert TrainingRun.objects.count() == 1


def log(run: TrainingRun, *steps: int) -> None:
    for step in steps:
        RunMetric.objects.create(run=run, step=step, values={"loss": 3.0 / step, "memory_bytes": 2e9})


def test_who_polls_gets_only_what_is_new(signed_in: Client, run: TrainingRun) -> None:
    log(run, 1, 2, 3)
    run.folder.mkdir(parents=True)
    run.log_file.write_text("one\ntwo\n")
    TrainingRun.objects.filter(pk=run.pk).update(status="running", attempt=1, lease_expires_at=now())
    run.refresh_from_db()
    assert run.keep_log(0) == run.keep_log(8) == run.log_start() == 8
    url = reverse("api:training-run-events", args=[run.pk])
    first = signed_in.get(url, {"after": 1}).json()
    assert [row["step"] for row in first["metrics"]] == [2, 3]
    assert (first["log"], first["after"], first["log_from"], first["ended"]) == ("one\ntwo\n", 3, 8, False)
    run.log_file.write_text("")
    assert run.log_start() == 0
    run.log_file.write_text("on another host\n")
    run.keep_log(0)
    assert signed_in.get(url, {"log_from": 8}).json()["log"] == "on another host\n"
    assert b"on another host" in signed_in.get(reverse("training-run", args=[run.pk])).content
    again = signed_in.get(url, {"after": 3, "log_from": 24}).json()
    assert (again["metrics"], again["log"]) == ([], "")
    assert signed_in.get(url, {"after": "last"}).json()["errors"][0]["field"] == "after"


async def read_stream(url: str, alice: User, last: str) -> str:
    client = AsyncClient()
    await client.aforce_login(alice)
    answer = await client.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": last})
    assert answer["Content-Type"].startswith("text/event-stream")
    return b"".join([part async for part in answer.streaming_content]).decode()


def test_who_listens_hears_the_rest_and_the_end(
    fresh_database: str, dataset: Dataset, adapter: Adapter, alice: User
) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    log(run, 1, 2, 3)
    run.cancel(by=alice.as_actor())
    text = asyncio.run(read_stream(reverse("api:training-run-events", args=[run.pk]), alice, "2:0"))
    snapshot, end = text.strip().split("\n\n")
    assert snapshot.startswith("id: 3:0\nevent: look\n")
    assert [row["step"] for row in json.loads(snapshot.partition("data: ")[2])["metrics"]] == [3]
    assert end == "event: end\ndata: {}"


def test_both_losses_stand_in_one_frame_and_the_best_checkpoint_is_marked() -> None:
    held_out = {2: 3.0, 4: 1.0, 6: 1.5, 8: 2.0}
    rows = [
        (step, {"loss": 1 / step, **({"held_out_loss": held_out[step]} if step in held_out else {})})
        for step in range(1, 9)
    ]
    running, ended = losses(rows, None), losses(rows, 6)
    assert running
    assert ended
    assert running["best"] == {"step": 4, "value": 1.0, "is_version": False}
    assert ended["best"] == {"step": 6, "value": 1.5, "is_version": True}
    assert f"{ended['mark']['x']},{ended['mark']['y']}" in ended["lines"][1]["points"].split()
    assert losses([(step, {"loss": 1.0}) for step in (1, 2)], None) is None


def test_a_long_run_draws_few_points_and_keeps_its_last() -> None:
    rows = [(step, {"loss": 1 / step, "memory_bytes": 5e9}) for step in range(1, 10_001)]
    curve_of = {curve["name"]: curve for curve in curves(rows)}
    assert set(curve_of) == {"loss", "memory_bytes"}
    assert len(curve_of["loss"]["points"].split()) <= MOST_POINTS + 1
    assert (curve_of["loss"]["last"], curve_of["memory_bytes"]["now"]) == (10_000, "5")
