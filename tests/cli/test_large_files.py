"""Files that a worker checks: commands wait for the check, and the same file is uploaded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from adapterhub.audit.models import AuditEvent
from registry.models import Adapter
from tests.builders import rows, write_jsonl
from tests.cli.command import Command
from tests.waiting import wait_until
from training.models import Dataset, TrainingRun, dataset
from training.tasks import check_dataset


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "AT_ONCE_BYTES", 100)


def checked(name: str) -> Dataset:
    """The upload, after a worker has checked it."""
    wait_until(lambda: Dataset.objects.filter(name=name, status="checking").exists(), 60, "the file is uploaded")
    upload = Dataset.objects.get(name=name, status="checking")
    check_dataset(upload.pk)
    upload.refresh_from_db()
    return upload


@pytest.mark.slow
def test_a_training_waits_for_the_check_of_its_file(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "big.jsonl", rows())
    training = command.start("train", "dora", "--dataset", "big.jsonl", "--set", "steps=5")
    data = checked("big")
    _, err = training.communicate(timeout=60)
    assert (training.returncode, "check of big.jsonl: checking" in err) == (0, True), err
    assert TrainingRun.objects.get().dataset == data
    # The same content in another file is the same dataset, and so is the same file.
    write_jsonl(tmp_path / "again.jsonl", [{**row, "unused": None} for row in rows()])
    training = command.start("train", "dora", "--dataset", "again.jsonl", "--json")
    twin = checked("again")
    out, err = training.communicate(timeout=60)
    assert (training.returncode, twin.same_as, json.loads(out)["dataset"]) == (0, data, data.pk), err
    uploads = Dataset.objects.count()
    for name in ("big.jsonl", "again.jsonl"):
        assert command("train", "dora", "--dataset", name).returncode == 0
    assert (Dataset.objects.count(), {run.dataset_id for run in TrainingRun.objects.all()}) == (uploads, {data.pk})


def test_a_broken_file_is_explained(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "a b c"}\n' * 20 + "{nothing\n")
    training = command.start("train", "dora", "--dataset", "broken.jsonl")
    checked("broken")
    _, err = training.communicate(timeout=60)
    assert (training.returncode, "broken.jsonl rejected: Line 21" in err) == (1, True), err


@pytest.mark.slow
def test_an_apply_is_done_once(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "big.jsonl", rows())
    declared = {"adapter": {"slug": "dora"}, "base": "tiny", "data": "big.jsonl", "hyperparameters": {"steps": 5}}
    (tmp_path / "adapterhub.yaml").write_text(yaml.safe_dump(declared))
    applying = command.start("apply", "--yes", "--timeout", "60")
    wait_until(Dataset.objects.exists, 60, "the file is uploaded")
    under_way = command("plan")
    number = Dataset.objects.get().pk
    assert f"> follow dataset big.jsonl: {number} is being checked" in under_way.stdout, under_way.stderr
    data = checked("big")
    wait_until(TrainingRun.objects.exists, 60, "the run is queued")
    applying.kill()
    before = (AuditEvent.objects.count(), Dataset.objects.count())
    again = command("apply", "--yes", "--timeout", "0")
    assert again.returncode == 5, again.stderr
    assert again.stderr.startswith(f"> follow training dora: {TrainingRun.objects.get().pk} is in progress")
    assert ((AuditEvent.objects.count(), Dataset.objects.count()), data.status) == (before, "ready")
