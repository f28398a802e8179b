"""A run's metrics in the files of other programs, read by these programs themselves."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import Adapter
from tests.tools import ROOT, TRACKERS_PYTHON, requires
from training.integrations.metric_formats import checksum, varint
from training.models import Dataset, RunMetric, TrainingRun
from training.runs.launch import launch_run

STEPS: dict[int, dict[str, Any]] = {
    step: {"loss": 4.0 / step, "learning_rate": 1e-3 * step, **({"held_out_loss": 3.5} if step % 200 == 0 else {})}
    for step in range(1, 401)
}


@pytest.fixture
def run(adapter: Adapter, dataset: Dataset, alice: User) -> TrainingRun:
    run = launch_run(adapter=adapter, dataset=dataset, hyperparameters={"steps": 400}, by=alice.as_actor())
    RunMetric.objects.bulk_create(RunMetric(run=run, step=step, values=values) for step, values in STEPS.items())
    return run


def downloaded(client: Client, run: TrainingRun, kind: str) -> Any:
    return client.get(reverse("api:training-run-metric-file", args=[run.pk]), {"as": kind})


def test_csv_has_a_line_a_step(client: Client, run: TrainingRun, alice: User, charlie: User) -> None:
    client.force_login(alice)
    answer = downloaded(client, run, "csv")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer["Content-Disposition"] == f'attachment; filename="{run.pk}.csv"'
    lines = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert list(lines[0]) == ["step", "loss", "held_out_loss", "learning_rate"]
    assert {int(line["step"]): float(line["loss"]) for line in lines} == {n: row["loss"] for n, row in STEPS.items()}
    assert [line["step"] for line in lines if line["held_out_loss"]] == ["200", "400"]
    assert downloaded(client, run, "xml").json()["errors"][0]["field"] == "as"
    assert "?as=tensorboard" in client.get(reverse("training-run", args=[run.pk])).content.decode()
    client.force_login(charlie)
    assert downloaded(client, run, "csv").status_code == 404


def test_checksums_and_numbers_are_those_of_the_standards() -> None:
    """RFC 3720, appendix B.4: 32 bytes of zeros have the CRC-32C 8a9136aa, stored low byte first."""
    assert checksum(bytes(32)) == (
        (0x8A9136AA >> 15 | (0x8A9136AA << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF
    ).to_bytes(4, "little")
    assert [varint(value) for value in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]


READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}).Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""
# The file of an offline run is a log of LevelDB with a header of seven bytes: blocks of 32 KB, in which each piece has
# a checksum (4), a length (2) and a kind (1): whole, first, middle, last. A record is a `Record` message.
READ_WANDB = """
import json, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
(path,) = Path(sys.argv[1]).glob("*.wandb")
content, place, record, rows, config = path.read_bytes(), 7, b"", [], {}
while place + 7 <= len(content):
    room = 32768 - place % 32768
    if room < 7:
        place += room
        continue
    size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
    record += content[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):
        read, record = Record.FromString(record), b""
        if read.WhichOneof("record_type") == "history":
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in read.history.item})
        if read.WhichOneof("record_type") == "run":
            config = {i.key: json.loads(i.value_json) for i in read.run.config.update}
print(json.dumps({"rows": rows, "config": config}))
"""


def read_by(program: str, *arguments: str) -> Any:
    answer = subprocess.run(
        [str(TRACKERS_PYTHON), "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
@requires("trackers")
def test_tensorboard_reads_its_event_file(client: Client, run: TrainingRun, alice: User, tmp_path: Path) -> None:
    client.force_login(alice)
    answer = downloaded(client, run, "tensorboard")
    (tmp_path / answer["Content-Disposition"].split('"')[1]).write_bytes(answer.content)
    scalars = read_by(READ_EVENTS, str(tmp_path))
    assert dict(scalars["loss"]) == pytest.approx({step: row["loss"] for step, row in STEPS.items()}, rel=1e-6)
    assert scalars["held_out_loss"] == [[200, 3.5], [400, 3.5]]


@pytest.mark.slow
@requires("trackers")
def test_wandb_reads_its_offline_run(client: Client, run: TrainingRun, alice: User, tmp_path: Path) -> None:
    client.force_login(alice)
    stored = {
        "run": client.get(reverse("api:training-run-detail", args=[run.pk])).json(),
        "steps": client.get(reverse("api:training-run-metrics", args=[run.pk])).json(),
    }
    (tmp_path / "run.json").write_text(json.dumps(stored))
    written = subprocess.run(
        [str(TRACKERS_PYTHON), ROOT / "adapterhub/cli/wandb_run.py", tmp_path / "run.json", tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout.splitlines()[-1]
    read = read_by(READ_WANDB, written)
    losses = {row["_step"]: row["loss"] for row in read["rows"] if "loss" in row}
    assert losses == pytest.approx({step: row["loss"] for step, row in STEPS.items()})
    assert read["config"]["steps"] == 400
