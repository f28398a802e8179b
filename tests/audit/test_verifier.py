"""The stand-alone verifier against a superuser: each way to falsify a trail is named with its sequence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import ProgrammingError, connection, transaction

from adapterhub.accounts.models import Project
from adapterhub.audit import checkpoints, verifier
from adapterhub.audit.export import csv_lines, export_lines
from adapterhub.audit.installation_key import public_key_pem
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from tests.audit import tamper


@pytest.fixture
def trail(fresh_database: str, project: Project, tmp_path: Path) -> Project:
    """Eight events; the first five and all eight were signed."""
    shutil.rmtree(Path(settings.ARTIFACT_STORE) / "checkpoints", ignore_errors=True)
    (tmp_path / "key.pem").write_bytes(public_key_pem())
    for number in range(8):
        with transaction.atomic():
            AuditEvent.record(
                Tag.PROJECT_CREATED, project, by=system("test"), project=project, after={"n": number, "x": 0.5}
            )
        if number in (4, 7):
            checkpoints.write(project)
    return project


def judge(tmp_path: Path, project: Project | None, *extra: str) -> tuple[int, dict[str, Any]]:
    """Export, and run the verifier as a program of its own: no Django, no path to our packages."""
    export = tmp_path / "events.jsonl"
    export.write_text("".join(export_lines(project)) if project else "")
    script = shutil.copy(verifier.__file__, tmp_path / "verifier.py")
    folder = Path(settings.ARTIFACT_STORE) / "checkpoints"
    options = ["--checkpoints", str(folder), "--public-key", str(tmp_path / "key.pem"), *extra]
    command = [sys.executable, "-I", str(script), str(export), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    return done.returncode, without_reach(done.stdout) if done.stdout else {"stderr": done.stderr}


def without_reach(verdict: str) -> dict[str, Any]:
    """The verdict without how far the checkpoints reach: to the last event, in most of these tests."""
    fields = json.loads(verdict)
    reach = {name: fields.pop(name) for name in ("witnessed", "witnessed_at", "by_chain_alone")}
    assert reach["by_chain_alone"] == 0
    assert reach["witnessed_at"].startswith("20")
    return fields


def test_an_untouched_trail_holds(trail: Project, tmp_path: Path) -> None:
    assert judge(tmp_path, trail) == (0, {"ok": True, "project": "eu", "sequence": 8, "fault": None})


@pytest.mark.threat("I1")
@pytest.mark.parametrize(
    ("falsify", "sequence", "fault"),
    [
        (lambda: tamper.edit(3), 3, "edited"),
        (lambda: tamper.delete(4), 4, "gap"),
        (tamper.reorder, 2, "edited"),
        (lambda: tamper.cut_after(6), 7, "tail"),
        (lambda: tamper.rehash(2), 5, "rehash"),
        (lambda: tamper.rehash(7), 8, "rehash"),
    ],
    ids=["edit", "delete", "reorder", "tail", "full-rehash", "late-rehash"],
)
def test_what_a_superuser_did_is_named(
    trail: Project, tmp_path: Path, falsify: Callable[[], None], sequence: int, fault: str
) -> None:
    falsify()
    assert judge(tmp_path, trail) == (1, {"ok": False, "project": "eu", "sequence": sequence, "fault": fault})


@pytest.mark.threat("I1")
def test_a_trail_cut_to_nothing_is_found(trail: Project, tmp_path: Path) -> None:
    assert judge(tmp_path, None)[1] == {"ok": False, "project": "eu", "sequence": 1, "fault": "tail"}


@pytest.mark.threat("I1")
def test_a_new_checkpoint_does_not_cover_a_rehash(trail: Project, tmp_path: Path) -> None:
    tamper.rehash(2)
    checkpoints.write(trail)
    assert judge(tmp_path, trail)[1]["fault"] == "rehash"


@pytest.mark.threat("I3")
@pytest.mark.parametrize("break_it", ["signature", "key", "missing"])
def test_what_cannot_be_read_is_no_verdict(trail: Project, tmp_path: Path, break_it: str) -> None:
    folder = Path(settings.ARTIFACT_STORE) / "checkpoints"
    checkpoints.write(trail)
    oldest, middle, _ = sorted(folder.rglob("*.json"))
    if break_it == "signature":
        oldest.chmod(0o644)
        oldest.write_text(oldest.read_text().replace('\\"sequence\\":5', '\\"sequence\\":4'))
    elif break_it == "key":
        (tmp_path / "key.pem").write_text("no key")
    elif break_it == "missing":
        middle.unlink()
    code, verdict = judge(tmp_path, trail)
    assert (code, verdict["stderr"][:2]) == (2, "--")


@pytest.mark.threat("I2")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_auditevent SET reason = 'x'",
        "DELETE FROM audit_auditevent",
        "TRUNCATE audit_auditevent",
        "UPDATE audit_checkpoint SET sequence = 0",
        "DELETE FROM audit_checkpoint",
        "TRUNCATE audit_checkpoint",
        "ALTER TABLE audit_auditevent DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "DROP TABLE audit_auditevent",
    ],
)
def test_the_role_of_the_application_is_refused(trail: Project, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.threat("H4")
def test_an_export_for_a_spreadsheet_runs_no_formula(trail: Project) -> None:
    with transaction.atomic():
        AuditEvent.record(Tag.PROJECT_CREATED, trail, by=system("test"), project=trail, reason='=HYPERLINK("x")\n')
    assert '"\'=HYPERLINK(""x"")' in "".join(csv_lines(trail))


@pytest.fixture
def bundle(trail: Project, tmp_path: Path) -> Path:
    """The export that `audit_export` writes, with its signed manifest."""
    call_command("audit_export", "eu", tmp_path / "bundle")
    return tmp_path / "bundle"


def judge_bundle(bundle: Path) -> tuple[int, dict[str, Any]]:
    """The bundle against the checkpoints and the key that were kept outside it."""
    script = shutil.copy(verifier.__file__, bundle.parent / "verifier.py")
    options = [
        "--checkpoints",
        str(Path(settings.ARTIFACT_STORE) / "checkpoints"),
        "--public-key",
        str(bundle.parent / "key.pem"),
    ]
    command = [sys.executable, "-I", str(script), str(bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent)
    return done.returncode, without_reach(done.stdout) if done.stdout else {"stderr": done.stderr}


def test_the_bundle_of_the_command_verifies(bundle: Path) -> None:
    assert judge_bundle(bundle) == (0, {"ok": True, "project": "eu", "sequence": 8, "fault": None})
    manifest = json.loads(json.loads((bundle / "manifest.json").read_text())["signed"])
    assert {"events.jsonl", "events.csv", "public-key.pem"} <= set(manifest["files"])


@pytest.mark.threat("I3")
def test_a_file_of_the_bundle_that_is_not_the_signed_one_is_named(bundle: Path) -> None:
    """The chain says nothing of the spreadsheet: only the manifest does."""
    sheet = bundle / "events.csv"
    whole = sheet.read_bytes()
    sheet.write_bytes(whole.replace(b"project:created", b"project:changed", 1))
    broken = {"ok": False, "project": "eu", "sequence": None, "fault": "edited", "file": "events.csv"}
    assert judge_bundle(bundle) == (1, broken)
    sheet.unlink()
    assert judge_bundle(bundle) == (1, {**broken, "fault": "gap"})
    sheet.write_bytes(whole)
    assert judge_bundle(bundle)[0] == 0


def test_an_edited_event_of_a_bundle_is_named_with_its_sequence(bundle: Path) -> None:
    events = bundle / "events.jsonl"
    events.write_text(events.read_text().replace('\\"n\\":2', '\\"n\\":7'))
    broken = {"ok": False, "project": "eu", "sequence": 3, "fault": "edited", "file": "events.jsonl"}
    assert judge_bundle(bundle) == (1, broken)


@pytest.mark.threat("I3")
@pytest.mark.parametrize("forge", ["digest", "signature", "gone"])
def test_a_manifest_that_was_not_signed_is_no_verdict(bundle: Path, forge: str) -> None:
    manifest = bundle / "manifest.json"
    outer = json.loads(manifest.read_text())
    if forge == "digest":
        size = (bundle / "events.csv").stat().st_size
        outer["signed"] = outer["signed"].replace(f'"size":{size}', f'"size":{size + 1}')
    elif forge == "signature":
        outer["signature"] = "00" * 64
    manifest.write_text(json.dumps(outer))
    if forge == "gone":
        manifest.unlink()
    code, verdict = judge_bundle(bundle)
    assert (code, verdict["stderr"][:6]) == (2, "EXPORT")
