from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.tools import interpreter_of_nobody, requires, run_as

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


# As an ordinary user every other test of this folder shows it already.
@requires("root", "user")
@pytest.mark.slow
def test_an_ordinary_user_starts_both(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    own = home / "own"
    own.mkdir()
    os.chown(own, nobody.pw_uid, nobody.pw_gid)
    home.chmod(0o711)
    done = run_as(nobody.pw_uid, [interpreter_of_nobody(), "-B", "-c", PROGRAM, str(own)])
    assert done.stdout.split() == ["adapterhub_app", "1", "adapterhub_app", "2", "700"], done.stderr
