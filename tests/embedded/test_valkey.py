from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import redis

from adapterhub.embedded import service
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import redis_url
from adapterhub.embedded.valkey import EmbeddedValkey
from tests.waiting import wait_until


def test_keys_outlive_a_stop(home: Path) -> None:
    with EmbeddedValkey(home), redis.Redis.from_url(redis_url(home)) as client:
        client.set("fruit", "pear")
    with EmbeddedValkey(home), redis.Redis.from_url(redis_url(home)) as client:
        assert client.get("fruit") == b"pear"


def test_keys_on_the_disk_outlive_a_killed_server(home: Path) -> None:
    with EmbeddedValkey(home) as valkey:
        with redis.Redis.from_url(redis_url(home)) as client:
            client.set("fruit", "pear")
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        os.kill(valkey.pid, signal.SIGKILL)
        wait_until(lambda: not valkey.is_running())
        valkey.start()
        with redis.Redis.from_url(redis_url(home)) as client:
            assert client.get("fruit") == b"pear"


def test_two_servers_never_share_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOCK_S", 0.1)
    with EmbeddedValkey(home), pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
        EmbeddedValkey(home).start()
