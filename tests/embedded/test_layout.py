from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dj_database_url
import pytest

from adapterhub.embedded import layout as places
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout, database_owner_url, database_url, redis_url
from tests.tools import requires


def test_urls_are_known_before_anything_exists_and_stay_the_same(home: Path) -> None:
    missing = home / "not made yet"
    before = database_url(missing), database_owner_url(missing), redis_url(missing)
    assert not missing.exists()
    Layout(missing).create()
    assert (database_url(missing), database_owner_url(missing), redis_url(missing)) == before


def test_django_reads_the_socket_folder_from_the_url(home: Path) -> None:
    parsed = dj_database_url.parse(database_url(home))
    assert parsed["HOST"] == str(Layout(home).postgres_sockets)
    assert (parsed["USER"], parsed["NAME"]) == ("adapterhub_app", "adapterhub")
    assert dj_database_url.parse(database_owner_url(home))["USER"] == "adapterhub_owner"


def test_every_folder_is_private(home: Path) -> None:
    layout = Layout(home)
    layout.create()
    folders = [entry for entry in home.iterdir() if entry.is_dir()]
    assert {entry.name for entry in folders} >= {"run", "pg", "valkey", "artifacts", "models", "logs", "work", "router"}
    of_postgres = {layout.postgres, layout.postgres_sockets}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in {*folders} - of_postgres} == {0o700}
    mode = 0o770 if layout.account else 0o700
    assert {(entry.stat().st_uid, stat.S_IMODE(entry.stat().st_mode)) for entry in of_postgres} == {
        (os.geteuid(), mode)
    }
    assert not stat.S_IMODE(home.stat().st_mode) & 0o066


def test_sockets_of_a_long_home_lie_in_a_short_private_folder(home: Path) -> None:
    long = home / ("long" * 20) / ("er" * 20)
    layout = Layout(long)
    layout.create()
    sockets = [layout.postgres_sockets / places.POSTGRES_SOCKET, layout.valkey_socket]
    try:
        assert all(len(os.fsencode(path)) <= 107 for path in sockets)
        assert {stat.S_IMODE(path.parent.stat().st_mode) & 0o007 for path in sockets} == {0}
        assert unquote(urlsplit(redis_url(long)).path) == str(layout.valkey_socket)
        assert Layout(home / "x").valkey_socket.parent == home / "x" / "run"
    finally:
        for path in sockets:
            shutil.rmtree(path.parent)


def test_a_socket_folder_that_another_user_made_first_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = home / ("long" * 30)
    planted = Layout(long).valkey_socket.parent
    planted.symlink_to(tempfile.gettempdir())
    try:
        with pytest.raises(StartError, match="belongs to another user"):
            Layout(long).create()
    finally:
        planted.unlink()
        shutil.rmtree(Layout(long).postgres_sockets, ignore_errors=True)


@requires("root")
def test_postgres_of_root_moves_out_of_a_home_that_its_account_cannot_reach(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = home / "system"
    monkeypatch.setattr(places, "SYSTEM_DATA", system)
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    layout = Layout(closed / "var")
    before = database_url(layout.home)
    layout.create()
    assert layout.postgres.parent == system
    closed.chmod(0o755)
    assert database_url(layout.home) == before, "the link in the home remembers where the database is"
