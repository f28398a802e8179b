"""A migration leaves a schema that the release before can work on: by rule, and with that release's web process."""

from __future__ import annotations

import io
import os
import runpy
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from django.conf import settings

from adapterhub.accounts.models import User
from adapterhub.environment import home
from registry.models import Alias, Cluster
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LINT = runpy.run_path(str(ROOT / ".ci/lint_migrations.py"))
NEWEST = max((ROOT / "registry/migrations").glob("0*.py"))


def git(*arguments: str) -> bytes:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout


def test_every_new_migration_keeps_the_rule_and_an_old_one_is_seen_to_break_it(fresh_database: str) -> None:
    assert LINT["faults"](LINT["SINCE"]) == []
    # It added columns that an insert of the release before leaves empty.
    broken = LINT["faults"]({"registry": "0032"})
    assert any("0032_replicas_come_and_go: an earlier release cannot work" in line for line in broken)


@pytest.fixture
def release_before(fresh_database: str, tmp_path: Path) -> Iterator[str]:
    """The address of web as it was before the newest migration, on the schema of now."""
    commit = git("log", "-1", "--format=%H", "--diff-filter=A", "--", str(NEWEST)).decode().strip()
    before = f"{commit}^" if commit else "HEAD"
    with tarfile.open(fileobj=io.BytesIO(git("archive", before))) as archive:
        archive.extractall(tmp_path, filter="data")
    assert not (tmp_path / NEWEST.relative_to(ROOT)).exists()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = settings.DATABASES["default"]
    url = f"postgres://{database['USER']}@{quote(database['HOST'], safe='')}/{fresh_database}"
    environ = {**os.environ, "DATABASE_URL": url, "ADAPTERHUB_HOME": str(home()), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "adapterhub.web", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=environ) as web:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{address}/healthz").is_success
            except httpx.TransportError:
                return web.poll() is not None

        wait_until(answers, 60, "the release before answers")
        yield address
        web.terminate()


@pytest.mark.slow
def test_the_release_before_reads_and_writes_on_the_new_schema(
    release_before: str, alias: Alias, alice: User, ci: str
) -> None:
    with httpx.Client(base_url=f"{release_before}/api/v1/", headers={"Authorization": f"Bearer {ci}"}) as api:
        body = {"project": "eu", "slug": "old", "base_model": alias.cluster.base_model.slug}
        made = api.post("clusters/", json=body)
        assert made.status_code == 201, made.text
        added = api.post("replicas/", json={"cluster": "old", "url": "http://127.0.0.1:9"})
        assert added.status_code == 201, added.text
        changed = api.patch("clusters/old/", json={"max_loras": 9, "reason": "by the release before"})
        assert changed.status_code == 200, changed.text
        for rows in ("clusters", "replicas", "aliases", "adapters", "rollouts", "approvals", "audit/events", "usage"):
            assert api.get(f"{rows}/").status_code == 200, rows
    assert httpx.get(f"{release_before}/login/").status_code == 200
    assert Cluster.objects.get(slug="old").max_loras == 9
