"""The `adapterhub` command against a live web process: what it does, what it prints, and its exit codes."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from registry.models import Adapter, AdapterVersion, Alias, BlindTest, Rollout
from registry.tasks import check_version
from tests.builders import member, rows, write_adapter, write_jsonl
from tests.cli.command import Command
from tests.fakes.playground_router import PlaygroundRouter, running_playground_router
from tests.waiting import wait_until
from training.models import Dataset, Evaluation, RankAnalysis, TrainingRun


@pytest.mark.slow
def test_versions_are_made(command: Command, adapter: Adapter, project: Project, tmp_path: Path) -> None:
    pushing = command.start("push", str(write_adapter(tmp_path / "given")), "--adapter", "dora", "--wait", "--json")
    wait_until(AdapterVersion.objects.exists, 60, "the version is there")
    check_version(AdapterVersion.objects.get().pk)
    out, err = pushing.communicate(timeout=60)
    assert (pushing.returncode, json.loads(out)["status"]) == (0, "ready"), err
    file = write_jsonl(tmp_path / "rows.jsonl", rows())
    planned = command("analyze", "--base-model", "tiny", "--dataset", str(file), "--budget", "uniform_rank=4", "--json")
    assert (planned.returncode, json.loads(planned.stdout)["id"]) == (0, str(RankAnalysis.objects.get().pk))
    # The same file is the same dataset.
    training = command.start("train", "dora", "--dataset", str(file), "--set", "steps=5", "--wait")
    wait_until(TrainingRun.objects.exists, 60, "the run is queued")
    run = TrainingRun.claim(TrainingRun.objects.get().pk)
    assert run is not None
    run.note({"kind": "progress", "step": 2, "total": 5, "eta_s": 1})
    run.failed("diverged", "The loss is not finite.")
    _, err = training.communicate(timeout=60)
    assert (training.returncode, Dataset.objects.count()) == (1, 1)
    assert err.endswith("training dora failed: The loss is not finite.\n")
    assert run.hyperparameters["steps"] == 5
    late = command("train", "dora", "--dataset", "1", "--wait", "--timeout", "0")
    assert late.returncode in (2, 5)
    assert command("push", "/nowhere", "--adapter", "dora").returncode == 2


@pytest.mark.slow
def test_a_worse_version_is_a_refused_gate(
    command: Command, alias: Alias, candidate: AdapterVersion, dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ("eval", candidate.served_name, "--dataset", str(dataset.pk), "--against", alias.version.served_name)
    late = command(*arguments, "--wait", "--timeout", "0")
    assert (late.returncode, "continues on the server" in late.stderr) == (5, True)
    job = Evaluation.claim(Evaluation.objects.get().pk)
    assert job is not None
    (tmp_path / "output").mkdir()
    worse = {"differences": {"against": {"mean": 0.2, "low": 0.1, "high": 0.3}}}
    (tmp_path / "output/result.json").write_text(json.dumps(worse))
    measuring = command.start(*arguments, "--wait")
    wait_until(lambda: Evaluation.objects.count() == 2, 60, "the second is queued")
    job.succeeded(tmp_path)
    second = Evaluation.claim(Evaluation.objects.queued().get().pk)
    assert second is not None
    second.succeeded(tmp_path)
    _, err = measuring.communicate(timeout=60)
    assert (measuring.returncode, "is worse than" in err) == (6, True)
    opened = command("rollout", "compliance", candidate.served_name, "--step", "5", "--reason", "try")
    Rollout.objects.update(status="running")
    refused = command("promote", "compliance", "--reason", "now")
    assert (opened.returncode, refused.returncode) == (0, 6), refused.stderr


@pytest.fixture
def router_of_site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A router whose address the web process reads when it starts, which is later."""
    with running_playground_router() as url:
        settings.ROUTER_URL = url
        monkeypatch.setenv("ADAPTERHUB_ROUTER_URL", settings.ROUTER_URL)
        yield


@pytest.mark.usefixtures("router_of_site")
def test_versions_are_compared_blindly(
    command: Command, alias: Alias, candidate: AdapterVersion, alice: User, tmp_path: Path
) -> None:
    PlaygroundRouter.known = {alias.version.served_name, candidate.served_name}
    (tmp_path / "questions.txt").write_text("the bank shall\n\nthe client may\n")
    versions = ("--version", "1", "--version", "2")
    created = command("blind", "ask", "dora", *versions, "--prompt", "who", "--prompts", "questions.txt", "--json")
    assert created.returncode == 0, created.stderr
    assert [test["prompt"] for test in json.loads(created.stdout)] == ["who", "the bank shall", "the client may"]
    assert len(PlaygroundRouter.requests) == 6
    test = BlindTest.objects.get(prompt="who")
    test.vote("A", by=alice.as_actor())
    results = command("blind", "results", "dora").stdout.splitlines()
    best = test.votes.get().preferred
    expected = ", ".join(f"v{number} {int(number == best)}" for number in (1, 2))
    assert f"{test.pk} {expected}, no difference 0: who" in results
    for wrong in ([*versions, "--prompts", "nowhere.txt"], versions):
        refused = command("blind", "ask", "dora", *wrong)
        assert (refused.returncode, "--prompts" in refused.stderr) == (2, True)
    assert command("blind", "results", "nothing").returncode == 2


@pytest.mark.slow
def test_traffic_is_moved(command: Command, alias: Alias, candidate: AdapterVersion) -> None:
    stable = alias.version.served_name
    plan = (
        "--step",
        "10:60:200",
        "--step",
        "50:60:200:approval",
        "--guardrail",
        "error_rate:1",
        "--guardrail",
        "latency:0.2:signal:0.95",
    )
    opened = command("rollout", "compliance", candidate.served_name, *plan, "--reason", "CI", "--json")
    assert opened.returncode == 0, opened.stderr
    rollout = Rollout.objects.get()
    assert json.loads(opened.stdout)["id"] == str(rollout.pk)
    assert rollout.steps[1] == {"weight": 50, "hold_s": 60, "min_samples": 200, "approval": True, "shadow": 0}
    assert rollout.guardrails[1]["level"] == 0.95
    again = command("rollout", "compliance", candidate.served_name, "--step", "1", "--reason", "CI")
    assert (again.returncode, "has not ended" in again.stderr) == (4, True)
    promoting = command.start("promote", "compliance", "--reason", "good", "--wait")
    wait_until(lambda: Rollout.objects.filter(status="loading").update(status="running"), 60, "replicas hold it")
    out, err = promoting.communicate(timeout=60)
    assert (promoting.returncode, out) == (0, f"compliance serves {candidate.served_name}\n"), err
    assert command("rollback", "compliance", "--reason", "bad").stdout == f"compliance serves {stable}\n"
    assert command("promote", "compliance", "--reason", "good", "--wait").returncode == 1
    history = command("alias", "history", "compliance", "--json")
    assert [move["version"] for move in json.loads(history.stdout)] == [stable, candidate.served_name, stable]
    at = command("alias", "history", "compliance", "--at", "2100-01-01T00:00:00Z").stdout
    assert (at.count("\n"), stable in at) == (1, True)
    for bad in ("x", "5:1:1:approval:1", "5:"):
        assert command("rollout", "compliance", stable, "--step", bad, "--reason", "r").returncode == 2


@pytest.mark.slow
def test_a_missing_signature_is_waited_for(
    command: Command, alias: Alias, candidate: AdapterVersion, alice: User, project: Project
) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    assert command("rollout", "compliance", candidate.served_name, "--step", "5", "--reason", "try").returncode == 0
    rollout = Rollout.objects.get()
    refused = command("promote", "compliance", "--reason", "now")
    assert (refused.returncode, "waits for signatures" in refused.stderr) == (6, True)
    waiting = command.start("promote", "compliance", "--reason", "now", "--wait")
    bob = member("boss", project, Membership.Role.APPROVER)
    rollout.approvals.get().reject(reason="no", by=bob.as_actor())
    _, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, "was rejected" in err) == (6, True)


def test_evidence_is_taken_away(command: Command, alias: Alias, project: Project, tmp_path: Path) -> None:
    assert command("audit", "verify").stdout.endswith("events, intact\n")
    assert command("audit", "export", "-o", "trail.jsonl").returncode == 0
    assert json.loads((tmp_path / "trail.jsonl").read_text().splitlines()[0])["sequence"] == 1
    assert command("audit", "export", "--as", "bundle", "-o", "trail.zip").returncode == 0
    assert zipfile.ZipFile(tmp_path / "trail.zip").testzip() is None
    assert json.loads(command("dossier", "dora", "1").stdout)
    _, reader = ApiToken.issue(name="reader", project=project, scopes=["read"])
    refused = command("audit", "verify", ADAPTERHUB_TOKEN=reader)
    assert (refused.returncode, "scope 'audit'" in refused.stderr) == (3, True)


def test_a_token_is_kept_for_its_owner_alone(command: Command, site: str, ci: str, tmp_path: Path) -> None:
    nothing = {"ADAPTERHUB_URL": "", "ADAPTERHUB_TOKEN": ""}
    without = command("audit", "verify", **nothing)
    assert (without.returncode, "adapterhub login" in without.stderr) == (2, True)
    assert command("login", site, stdin="ah_wrong_token\n", **nothing).returncode == 3
    assert command("login", site, "--project", "other", stdin=f"{ci}\n", **nothing).returncode == 2
    done = command("login", site, stdin=f"{ci}\n", **nothing)
    assert (done.returncode, ci in done.stdout + done.stderr) == (0, False)
    file = tmp_path / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert command("audit", "verify", **nothing).returncode == 0
    file.write_text("url = 1\n")
    assert (command("audit", "verify", **nothing).returncode, command("--help").returncode) == (2, 0)
    completion = command("--show-completion", "bash")
    assert (completion.returncode, "complete" in completion.stdout) == (0, True)
