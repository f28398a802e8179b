"""axe-core, the checker of accessibility: one pinned release from npm, fetched once and kept in pytest's cache."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.10.3"
GRAVE = ("serious", "critical")


def source(folder: Path) -> str:
    """The script's text; a skip where npm cannot give it, unless the session requires browsers."""
    archive = folder / f"axe-core-{VERSION}.tgz"
    if not archive.exists() and (why := fetch(folder)):
        if "browser" in os.environ.get("ADAPTERHUB_REQUIRE", ""):
            pytest.fail(f"ADAPTERHUB_REQUIRE names browser, and there is no axe-core: {why}")
        pytest.skip(f"no axe-core: {why}")
    with tarfile.open(archive) as packed:
        script = packed.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def fetch(folder: Path) -> str:
    """Why it failed, or nothing."""
    command = ["npm", "pack", "--silent", f"axe-core@{VERSION}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"npm pack axe-core@{VERSION}: {error}"
    return ""


def violations(page: Any, script: str, **options: Any) -> list[str]:
    """Each serious or critical one with its first place; the script is evaluated, so the page's CSP stays as it is."""
    page.evaluate(script)
    found = page.evaluate("options => axe.run(document, {resultTypes: ['violations'], ...options})", options)
    grave = [each for each in found["violations"] if each["impact"] in GRAVE]
    return [f"{each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}" for each in grave
            for node in each["nodes"][:2]]  # fmt: skip
