"""The embedded Postgres started by root: another account, even that of its own server, gets no session."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from adapterhub.embedded.layout import Layout, database_admin_url, database_owner_url, database_url
from adapterhub.embedded.postgres import EmbeddedPostgres
from tests.tools import requires

URLS = (database_admin_url, database_owner_url, database_url)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="adapterhub-test-", dir="/tmp"))
    folder.chmod(0o711)
    with EmbeddedPostgres(folder, {"fsync": "off"}):
        yield folder
    shutil.rmtree(folder)


def refusal(url: str, uid: int, gid: int) -> str:
    """Return the error that a process of this user and group gets, or nothing when it got a session."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.write(write, attempt(url).encode()[:4000])
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        return answer.read()


def attempt(url: str) -> str:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_this_user_gets_every_role(home: Path) -> None:
    assert [attempt(url(home)) for url in URLS] == ["", "", ""]


@requires("root")
@pytest.mark.parametrize("url", URLS)
@pytest.mark.threat("C14")
@pytest.mark.slow
def test_nobody_reaches_no_socket(home: Path, url: object) -> None:
    nobody = pwd.getpwnam("nobody")
    answer = refusal(url(home), nobody.pw_uid, nobody.pw_gid)
    assert "Permission denied" in answer, answer


@requires("root")
@pytest.mark.parametrize("url", URLS)
@pytest.mark.threat("C14")
def test_the_account_of_the_server_itself_gets_no_session(home: Path, url: object) -> None:
    """Reaching the socket is not enough: the operating system says who connects."""
    account = Layout(home).account
    assert account is not None
    answer = refusal(url(home), account.uid, account.gid)
    assert "Peer authentication failed" in answer, answer


@requires("root")
@pytest.mark.threat("C14")
def test_nothing_of_it_is_open_to_what_else_runs_as_nobody(home: Path) -> None:
    layout, nobody = Layout(home), pwd.getpwnam("nobody")
    command = ["ls", str(layout.postgres), str(layout.postgres_data), str(layout.postgres_sockets)]
    done = subprocess.run(command, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], capture_output=True)
    assert (done.stdout, done.stderr.count(b"Permission denied")) == (b"", 3)
    assert layout.postgres_sockets.stat().st_uid == 0
    assert not stat.S_IMODE(layout.postgres_sockets.stat().st_mode) & 0o007


@requires("root")
@pytest.mark.threat("C14")
@pytest.mark.slow
def test_a_database_that_trusted_everybody_trusts_nobody_after_its_next_start(home: Path, tmp_path: Path) -> None:
    """As it was made before: its own file of rules trusts, and its folders belong to the account alone."""
    old = Path(tempfile.mkdtemp(prefix="adapterhub-test-", dir="/tmp"))
    old.chmod(0o711)
    try:
        with EmbeddedPostgres(old, {"fsync": "off"}):
            pass
        layout, nobody = Layout(old), pwd.getpwnam("nobody")
        (layout.postgres_data / "pg_hba.conf").write_text("local all all trust\n")
        for folder in (layout.postgres, layout.postgres_sockets):
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            folder.chmod(0o700)
        with EmbeddedPostgres(old, {"fsync": "off"}):
            account = layout.account
            assert account is not None
            assert attempt(database_url(old)) == ""
            assert "Permission denied" in refusal(database_admin_url(old), nobody.pw_uid, nobody.pw_gid)
            assert "Peer authentication failed" in refusal(database_admin_url(old), account.uid, account.gid)
    finally:
        shutil.rmtree(old)
