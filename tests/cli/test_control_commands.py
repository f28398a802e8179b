"""Rollouts that wait for somebody: what commands say of them, with which exit code, and how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.models import Adapter, AdapterVersion, Alias, Rollout
from registry.rollouts.controller import LOOP
from registry.serving.reconciler import RECONCILER
from tests.builders import rows, write_jsonl
from tests.cli.command import Command
from tests.waiting import wait_until
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run

STEPS = [{"weight": 10, "hold_s": 60, "min_samples": 100}, {"weight": 50, "hold_s": 60, "min_samples": 100}]
RAILS = [{"metric": "error_rate", "margin": 1}]
SILENCE = "error rate: nothing from the control and the candidate for 5 minutes."


@pytest.fixture
def declared(
    command: Command,
    adapter: Adapter,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    alice: Any,
    tmp_path: Path,
) -> Path:
    """A declaration whose version is trained already, so that only the rollout is missing."""
    write_jsonl(tmp_path / "rows.jsonl", rows())
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    TrainingRun.objects.filter(pk=run.pk).update(status="succeeded", version=candidate)
    rollout = {"alias": "compliance", "steps": STEPS, "guardrails": RAILS}
    file = tmp_path / "adapterhub.yaml"
    file.write_text(
        yaml.safe_dump({"adapter": {"slug": "dora"}, "base": "tiny", "data": "rows.jsonl", "rollout": rollout})
    )
    return file


@pytest.mark.usefixtures("declared")
@pytest.mark.slow
def test_a_paused_rollout_is_told_and_resumed(command: Command, alias: Alias, candidate: AdapterVersion) -> None:
    applied = command("apply", "--yes", "--json")
    result = json.loads(applied.stdout)
    assert (applied.returncode, result["exit_code"], result["serving"]) == (0, 0, alias.version.served_name)
    rollout = Rollout.objects.get()
    rollout.started(by=RECONCILER)
    waiting = command.start("apply", "--yes", "--wait", "--timeout", "60")
    wait_until(lambda: waiting.stderr and "running, 10 %" in waiting.stderr.readline(), 60, "it follows the rollout")
    rollout.pause(reason=SILENCE, by=LOOP)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, SILENCE in out, "adapterhub resume compliance" in err) == (7, True, True), err
    for arguments in (("plan",), ("apply", "--yes")):
        paused = command(*arguments)
        text = paused.stdout + paused.stderr
        assert (paused.returncode, "everything is as the file says" in text) == (7, False), text
        assert f"rollout of compliance paused at step 1 of 2, 10 % for {candidate.served_name}: {SILENCE}" in text
        assert f"Everybody gets {alias.version.served_name}." in text
    seen = json.loads(command("plan", "--json").stdout)
    assert (seen["exit_code"], seen["rollout"]["status"], seen["rollout"]["status_reason"]) == (7, "paused", SILENCE)
    resumed = command("resume", "compliance", "--reason", "traffic comes", "--json")
    assert (resumed.returncode, json.loads(resumed.stdout)["status"]) == (0, "running"), resumed.stderr
    assert command("plan").stdout == "Nothing changed: everything is as the file says.\n"
    assert "paused at step 1 of 2" in command("pause", "compliance", "--reason", "a look").stdout
    assert command("cancel", "compliance", "--reason", "enough").stdout == "rollout of compliance rolled back: enough\n"
    gone = command("resume", "compliance", "--reason", "x")
    assert (gone.returncode, "has no active rollout" in gone.stderr) == (2, True)
    failed = command("plan")
    assert (failed.returncode, "The reason was: enough" in failed.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.usefixtures("declared")
def test_a_missing_signature_has_its_exit_code(command: Command, alias: Alias, alice: Any) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    for arguments in (("apply", "--yes"), ("apply", "--yes"), ("plan",)):
        unsigned = command(*arguments)
        assert (unsigned.returncode, "people sign the plan of compliance" in unsigned.stdout + unsigned.stderr) == (
            8,
            True,
        ), unsigned.stderr
    refused = command("approve", "compliance", "--reason", "x")
    assert (refused.returncode, "page of approvals" in refused.stderr) == (8, True)


@pytest.mark.usefixtures("declared")
@pytest.mark.slow
def test_a_step_is_approved(command: Command, alias: Alias, candidate: AdapterVersion) -> None:
    assert command("apply", "--yes").returncode == 0
    rollout = Rollout.objects.get()
    early = command("approve", "compliance", "--reason", "x")
    assert (early.returncode, "nothing to approve" in early.stderr) == (4, True), early.stderr
    rollout.started(by=RECONCILER)
    for step in (1, 2):
        rollout.wait_for_approval(reason="The step is done.", by=LOOP)
        waiting = command("plan")
        assert (waiting.returncode, "adapterhub approve compliance" in waiting.stdout) == (8, True), waiting.stderr
        approved = command("approve", "compliance", "--reason", f"step {step} is good")
        assert approved.returncode == 0, approved.stderr
        rollout.refresh_from_db()
        assert rollout.step == 1
    alias.refresh_from_db()
    assert (rollout.status, alias.version) == ("promoted", candidate)
    assert command("plan").stdout == "Nothing changed: everything is as the file says.\n"


def test_a_rollout_without_a_guardrail_is_told(command: Command, alias: Alias, candidate: AdapterVersion) -> None:
    arguments = ("rollout", "compliance", candidate.served_name, "--step", "10", "--reason", "by hand")
    endless = command(*arguments, "--wait")
    assert (endless.returncode, "--guardrail" in endless.stderr, Rollout.objects.count()) == (2, True, 0)
    opened = command(*arguments)
    assert (opened.returncode, "stays at 10 % until somebody moves it" in opened.stderr) == (0, True)


def test_a_job_is_cancelled(command: Command, adapter: Adapter, dataset: Dataset, alice: Any) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    cancelled = command("cancel", str(run.pk), "--reason", "wrong data")
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{run.pk} cancelled\n"), cancelled.stderr
    missing = command("cancel", "6f9619ff-8b86-d011-b42d-00c04fc964ff", "--reason", "x")
    assert (missing.returncode, "no job" in missing.stderr) == (2, True)
