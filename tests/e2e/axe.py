"""axe-core, the checker of accessibility: one pinned release from npm, fetched once and kept in pytest's cache."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.tools import AXE_VERSION, TOOLS, axe_core, program, required

GRAVE = ("serious", "critical")


def source(config: pytest.Config) -> str:
    """Return the script's text; skip the test where npm cannot fetch it, unless ADAPTERHUB_REQUIRE names axe."""
    archive = axe_core(config)
    if not archive.exists() and (fault := fetch(archive.parent)):
        if "axe" in required():
            pytest.fail(f"ADAPTERHUB_REQUIRE names axe, and npm cannot fetch it: {fault}")
        pytest.skip(f"{TOOLS['axe'].reason}: {fault}")
    with tarfile.open(archive) as packed:
        script = packed.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def fetch(folder: Path) -> str:
    """Return what went wrong, or nothing."""
    command = [program("npm"), "pack", "--silent", f"axe-core@{AXE_VERSION}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def violations(page: Any, script: str, **options: Any) -> list[str]:
    """Each serious or critical one with its first place; the script is evaluated, so the page's CSP stays as it is."""
    page.evaluate(script)
    report = page.evaluate("options => axe.run(document, {resultTypes: ['violations'], ...options})", options)
    grave = [each for each in report["violations"] if each["impact"] in GRAVE]
    return [
        f"{each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for each in grave
        for node in each["nodes"][:2]
    ]
