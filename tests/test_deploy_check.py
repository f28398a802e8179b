"""What an operator runs before a release: Django's checks, the migrations, the schema."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import Client
from openapi_spec_validator import OpenAPIV31SpecValidator

ROOT = Path(__file__).resolve().parents[1]
PRODUCTION = {
    "ADAPTERHUB_HTTPS": "1",
    "ADAPTERHUB_HOSTS": "hub.example.org",
    "DATABASE_URL": "postgres://app:secret@postgres.invalid/adapterhub",
    "REDIS_URL": "redis://valkey.invalid:6379/0",
    "ARTIFACT_STORE": "s3://adapterhub",
}


def check_deploy(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    env = {**os.environ, **PRODUCTION, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_production_settings_have_no_warning() -> None:
    done = check_deploy(ADAPTERHUB_SECRET_KEY=secrets.token_urlsafe(64))
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_the_check_sees_a_weak_key_and_a_site_without_tls() -> None:
    weak = check_deploy(ADAPTERHUB_SECRET_KEY="short")
    plain = check_deploy(ADAPTERHUB_SECRET_KEY=secrets.token_urlsafe(64), ADAPTERHUB_HTTPS="0")
    assert (weak.returncode, plain.returncode) == (1, 1)
    assert "security.W009" in weak.stderr
    assert "security.W008" in plain.stderr


def test_the_key_may_lie_in_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    for text, code in ((secrets.token_urlsafe(64), 0), ("short", 1)):
        key.write_text(f"{text}\n")
        assert check_deploy(ADAPTERHUB_SECRET_KEY_FILE=str(key)).returncode == code


@pytest.mark.django_db
def test_every_model_has_its_migration() -> None:
    said = io.StringIO()
    call_command("makemigrations", check_changes=True, dry_run=True, stdout=said)
    assert "No changes detected" in said.getvalue()


def test_the_schema_is_valid_openapi_3_1() -> None:
    answer = Client().get("/api/schema/", headers={"accept": "application/vnd.oai.openapi+json"})
    schema = answer.json()
    assert answer.status_code == 200
    assert schema["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(schema).iter_errors()) == []


def test_the_schema_is_built_without_a_warning(tmp_path: Path) -> None:
    call_command("spectacular", validate=True, fail_on_warn=True, file=str(tmp_path / "schema.yaml"))
