"""`manage.py check --deploy` tells a production that is safe from one that is not."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCTION = {
    "ADAPTERHUB_HTTPS": "1",
    "ADAPTERHUB_HOSTS": "hub.example.org",
    "ADAPTERHUB_PROXIES": "10.0.0.2",
    "DATABASE_URL": "postgres://app:secret@postgres.invalid/adapterhub",
    "REDIS_URL": "redis://valkey.invalid:6379/0",
    "ARTIFACT_STORE": "s3://adapterhub",
}


def check_deploy(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    env = {**os.environ, **PRODUCTION, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_the_check_sees_a_weak_key_and_a_site_without_tls() -> None:
    weak = check_deploy(ADAPTERHUB_SECRET_KEY="short")
    plain = check_deploy(ADAPTERHUB_SECRET_KEY=secrets.token_urlsafe(64), ADAPTERHUB_HTTPS="0")
    assert (weak.returncode, plain.returncode) == (1, 1)
    assert "security.W009" in weak.stderr
    assert "security.W008" in plain.stderr


@pytest.mark.slow
def test_the_check_asks_for_the_proxy_before_a_site_with_tls() -> None:
    unnamed = check_deploy(ADAPTERHUB_SECRET_KEY=secrets.token_urlsafe(64), ADAPTERHUB_PROXIES="")
    assert unnamed.returncode == 1
    assert "adapterhub.W001" in unnamed.stderr
    wrong = check_deploy(ADAPTERHUB_PROXIES="nginx")
    assert "ADAPTERHUB_PROXIES: 'nginx' is not an IP address or network" in wrong.stderr


@pytest.mark.slow
def test_no_folder_has_to_be_made_before_the_first_command(tmp_path: Path) -> None:
    checked = check_deploy(ADAPTERHUB_SECRET_KEY=secrets.token_urlsafe(64), ADAPTERHUB_HOME=str(tmp_path / "new"))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_the_key_may_lie_in_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    for text, code in ((secrets.token_urlsafe(64), 0), ("short", 1)):
        key.write_text(f"{text}\n")
        assert check_deploy(ADAPTERHUB_SECRET_KEY_FILE=str(key)).returncode == code
