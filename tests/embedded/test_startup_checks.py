from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.embedded import startup_checks
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.options import base_model_folder


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgres://app:s3cret@127.0.0.1:1/x", "cannot be reached"),
        ("postgres://app:s3cret@127.0.0.1:port/x", "cannot be reached"),
        ("postgres://app:s3cret@host@127.0.0.1:1/x", "percent-encoded"),
        ("mysql://app:s3cret@127.0.0.1/x", "is not a postgres:// URL"),
        ("s3cret", "is not a postgres:// URL"),
    ],
)
def test_a_wrong_database_url_is_named_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(StartError, match=reason) as refused:
        startup_checks.check_database("DATABASE_URL", url)
    assert "DATABASE_URL" in str(refused.value)
    assert "unset it to use the embedded Postgres" in str(refused.value)
    assert "s3cret" not in str(refused.value).replace("'s3cret'", "")


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:1/0", "redis://:s3cret@127.0.0.1:port/0", "nonsense"])
def test_a_wrong_redis_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(StartError, match="REDIS_URL") as refused:
        startup_checks.check_redis(url)
    assert "s3cret" not in str(refused.value)


def test_a_wrong_database_url_ends_the_command_with_one_sentence_and_no_folder(home: Path) -> None:
    wrong = {"DATABASE_URL": "postgres://app:s3cret@127.0.0.1:1/x", "ADAPTERHUB_HOME": str(home / "new")}
    command = [sys.executable, "-m", "adapterhub.embedded", "run"]
    done = subprocess.run(command, env=os.environ | wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("DATABASE_URL=postgres://app:***@127.0.0.1:1/x cannot be reached")
    assert done.stderr.count("\n") == 1
    assert not (home / "new").exists()


def test_a_port_in_use_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_checks, "PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartError, match=rf"Port {port} of 127.0.0.1 .*set ADAPTERHUB_ROUTER_PORT"):
            startup_checks.check_ports("127.0.0.1", [("ADAPTERHUB_ROUTER_PORT", port)])
    startup_checks.check_ports("127.0.0.1", [("ADAPTERHUB_ROUTER_PORT", port)])


def test_one_port_for_two_processes_is_refused() -> None:
    with pytest.raises(StartError, match="ADAPTERHUB_ROUTER_PORT and ADAPTERHUB_PORT both use port 65001"):
        startup_checks.check_ports("127.0.0.1", [("ADAPTERHUB_PORT", 65001), ("ADAPTERHUB_ROUTER_PORT", 65001)])


def test_a_host_that_is_none_of_ours_is_named() -> None:
    with pytest.raises(StartError, match=r"ADAPTERHUB_HOST='192\.0\.2\.1' is not an address of this machine"):
        startup_checks.check_ports("192.0.2.1", [])


def test_a_full_disk_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_checks, "LEAST_FREE_BYTES", shutil.disk_usage(home).total + 1)
    with pytest.raises(StartError, match=r"MB free .* ADAPTERHUB_HOME"):
        startup_checks.check_space(home / "not made yet")


def test_a_missing_base_model_is_named(home: Path) -> None:
    with pytest.raises(StartError, match="ADAPTERHUB_BASE_MODEL='/nowhere' is not a folder"):
        base_model_folder(home, {"ADAPTERHUB_BASE_MODEL": "/nowhere"})
    assert base_model_folder(home, {"ADAPTERHUB_BASE_MODEL": str(home)}) == home
    assert base_model_folder(home, {}) == home / "models" / "smollm2-135m-instruct"
