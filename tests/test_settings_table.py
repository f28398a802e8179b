"""The one table of settings: errors that name the variable, secrets from files, complete docs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import environment as env

ROOT = Path(__file__).parent.parent


def manage(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "manage.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


def test_a_bad_number_names_its_variable() -> None:
    done = manage("check", ADAPTERHUB_PORT="http", ADAPTERHUB_LEASE_S="soon")
    assert done.returncode != 0
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("ADAPTERHUB_LEASE_S='soon' is not a whole number from 1 to 2147483648: set it to one, or unset it.")
    )


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("postgres://app@db/hub\n")
    assert env.read("DATABASE_URL", {"DATABASE_URL_FILE": str(path)}) == "postgres://app@db/hub"


def test_a_secret_file_that_is_missing_is_named() -> None:
    with pytest.raises(env.BadSetting, match="DATABASE_URL_FILE"):
        env.read("DATABASE_URL", {"DATABASE_URL_FILE": "/nowhere/url"})


@pytest.mark.parametrize("setting", env.TABLE.values(), ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: env.Setting) -> None:
    assert f"`{setting.name}`" in (ROOT / "docs/settings.md").read_text()


def test_a_word_that_is_no_choice_is_named() -> None:
    assert env.choice("S3_ADDRESSING", ("path", "virtual"), {"S3_ADDRESSING": "virtual"}) == "virtual"
    assert env.choice("S3_ADDRESSING", ("path", "virtual"), {}) == ""
    with pytest.raises(env.BadSetting, match="S3_ADDRESSING='host' is not one of path, virtual"):
        env.choice("S3_ADDRESSING", ("path", "virtual"), {"S3_ADDRESSING": "host"})


def test_no_process_of_ours_reports_its_use_to_a_hub() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY
