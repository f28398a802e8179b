"""A backup is of one moment, names what is wrong with it, and comes back whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.db.backends.utils import CursorWrapper
from django.utils.timezone import now

from adapterhub.accounts.authentication import TokenAuthentication
from adapterhub.accounts.models import Project, User
from adapterhub.artifacts import FolderStore
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.backup import archive, keys, rows
from adapterhub.backup.errors import BackupError
from adapterhub.workspace import store
from registry.models import AdapterVersion, Alias, Response

PARTITION = "CREATE TABLE registry_response_past PARTITION OF registry_response FOR VALUES FROM ('{}') TO ('{}')"
PASSPHRASE = "the long passphrase of the vault"  # noqa: S105


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    return str(path)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys of its own, so that a restore may lose and write them."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret-key").write_text(settings.SECRET_KEY)
    (home / "router-secret").write_text("of the routers")
    monkeypatch.setattr(settings, "HOME", home)
    monkeypatch.setattr(settings, "AUDIT_KEY_FILE", home / "audit-key.pem")
    monkeypatch.setattr(settings, "ROUTER_SECRET_FILE", home / "router-secret")
    return home


def test_keys_are_opened_by_their_passphrase_alone() -> None:
    sealed = keys.sealed({"secret_key": "s3cret"}, PASSPHRASE)
    assert b"s3cret" not in sealed
    assert keys.opened(sealed, PASSPHRASE) == {"secret_key": "s3cret"}
    with pytest.raises(BackupError, match="not the one that the backup was made with"):
        keys.opened(sealed, PASSPHRASE + "?")
    with pytest.raises(BackupError, match="fewer than 16 characters"):
        keys.sealed({}, "short")


def test_a_key_of_the_environment_must_be_that_of_the_backup(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_SECRET_KEY", "another")
    before = (own_home / "router-secret").read_text()
    with pytest.raises(BackupError, match="ADAPTERHUB_SECRET_KEY is not the key of the backup"):
        keys.put_back({"secret_key": "one", "audit_key": "two", "router_secret": "three"})
    assert (own_home / "router-secret").read_text() == before
    assert not (own_home / "audit-key.pem").exists()


def test_an_incomplete_or_damaged_backup_is_named_before_anything_is_changed(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"no complete backup: it has no readable backup\.json"):
        archive.contents_of(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/accounts_user.gz").write_bytes(b"rows")
    digests = {"accounts_user.gz": archive.sha256_of(tmp_path / "rows/accounts_user.gz")}
    (tmp_path / "backup.json").write_text(json.dumps({"format": 1, "files": digests}))
    assert archive.contents_of(tmp_path)["files"] == digests
    (tmp_path / "rows/accounts_user.gz").write_bytes(b"r0ws")
    with pytest.raises(BackupError, match=r"accounts_user\.gz is missing or damaged"):
        archive.contents_of(tmp_path)
    (tmp_path / "backup.json").write_text(json.dumps({"format": 2, "files": digests}))
    with pytest.raises(BackupError, match="a format that this release does not know"):
        archive.contents_of(tmp_path)


def test_neither_a_folder_nor_a_project_is_overwritten_unasked(project: Project, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exists: name a folder that does not exist yet"):
        call_command("backup", str(tmp_path), "--without-keys")
    with pytest.raises(CommandError, match="one of the arguments --passphrase-file --without-keys is required"):
        call_command("backup", str(tmp_path / "new"))
    with pytest.raises(CommandError, match="--replace"):
        call_command("restore", str(tmp_path))


def test_an_artifact_is_replaced_where_the_store_lost_or_damaged_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    digests = []
    live, copies = FolderStore(tmp_path / "live"), FolderStore(tmp_path / "copies")
    for content in ("whole", "lost", "damaged", "nowhere"):
        source.mkdir(exist_ok=True)
        (source / "weights").write_text(content)
        digests.append(live.put_dir(source))
        copies.put_dir(source)
    live.drop(digests[1], now())
    (live.place(digests[2]) / "weights").write_text("DAMAGED")
    for each in (live, copies):
        (each.place(digests[3]) / "weights").write_text("bad")
    report = archive.Report()
    archive.put_back_artifacts(copies, live, digests, report)
    assert [archive.is_whole(live, digest) for digest in digests] == [True, True, True, False]
    assert report.artifacts == 3
    assert report.faults == [f"Artifact {digests[3][:12]} is intact neither in the store nor in the backup."]


@pytest.mark.slow
def test_rows_of_one_moment_come_back_with_triggers_rights_and_sequences(
    fresh_database: str,
    alias: Alias,
    candidate: AdapterVersion,
    ci: str,
    alice: User,
    own_home: Path,
    passphrase: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "backup"
    first = alias.version
    alias.move(candidate, expected=first, by=alice.as_actor(), reason="before the backup")
    answers = {"old": now() - timedelta(days=170), "new": now()}
    with connections["owner"].cursor() as cursor:
        cursor.execute(PARTITION.format(answers["old"].date(), (answers["old"] + timedelta(days=1)).date()))
    of = {"project": alias.project, "alias_name": alias.name, "version": first, "arm": "none", "is_sticky": True}
    for pk, at in answers.items():
        Response.objects.create(id=pk, at=at, status=200, total_ms=20.0, **of)
    before, events = triggers(), AuditEvent.objects.count()
    moved = write_meanwhile(
        monkeypatch,
        lambda: alias.move(first, expected=candidate, by=alice.as_actor(), reason="too late for the backup"),
    )
    call_command("backup", str(folder), passphrase_file=Path(passphrase))
    assert moved.is_set()
    assert AuditEvent.objects.count() == events + 1
    # Damage: rows, keys, and the bytes of a version.
    with connections["owner"].cursor() as cursor:
        cursor.execute("DROP TABLE registry_alias CASCADE")
    (own_home / "secret-key").write_text("lost")
    (own_home / "audit-key.pem").unlink()
    stored = store()
    assert isinstance(stored, FolderStore)
    for path in stored.place(candidate.digest).iterdir():
        path.write_bytes(b"damaged")

    report = archive.put_back(folder, store(), PASSPHRASE)
    assert report.faults == []
    assert AuditEvent.objects.count() == events
    assert Alias.objects.get().version == candidate
    assert dict(Response.objects.values_list("id", "at")) == answers
    assert verify(Project.objects.get(slug="eu"))[1] == []
    assert archive.is_whole(stored, candidate.digest)
    assert (own_home / "secret-key").read_text() == settings.SECRET_KEY
    assert "PRIVATE KEY" in (own_home / "audit-key.pem").read_text()
    assert TokenAuthentication().find(ci).name == "ci"
    # What protects history does so again, for this role; and new rows have new numbers.
    assert triggers() == before
    with pytest.raises(Exception, match=r"permission denied|append-only"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_auditevent")
    Alias.objects.get().move(first, expected=candidate, by=alice.as_actor(), reason="after the restore")
    assert AuditEvent.objects.count() == events + 1


def write_meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> threading.Event:
    """Have somebody change rows between the first table that a backup writes and the second."""
    written, write_table = threading.Event(), rows.write_table

    def change_elsewhere() -> None:
        change()
        connections.close_all()

    def write_and_change(cursor: CursorWrapper, table: str, path: Path) -> dict[str, object]:
        facts = write_table(cursor, table, path)
        if not written.is_set():
            written.set()
            thread = threading.Thread(target=change_elsewhere)
            thread.start()
            thread.join()
        return facts

    monkeypatch.setattr(rows, "write_table", write_and_change)
    return written


def triggers() -> list[tuple[str, str, str]]:
    with connections["owner"].cursor() as cursor:
        cursor.execute(rows.TRIGGERS)
        return sorted(trigger for trigger in cursor.fetchall() if not trigger[0].startswith("registry_response_"))
