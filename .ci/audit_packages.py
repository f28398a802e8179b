"""Known weaknesses of the installed packages, by pip-audit. A finding fails.

What the service cannot tell is counted and printed: such a run proves nothing about those packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from typing import Any

LIMIT_S = 120
Report = dict[str, Any]


def report() -> Report | None:
    """pip-audit's answer, or None when the service gave none in time."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--skip-editable",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)  # noqa: S603
        answer: Report = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return answer


def findings(answer: Report) -> list[str]:
    """One line a weakness: package, version, id, and the version that mends it."""
    return [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in {', '.join(weakness['fix_versions'])}"
        for package in answer["dependencies"]
        for weakness in package.get("vulns", [])
    ]


def verdict(answer: Report | None, installed: int) -> tuple[int, list[str]]:
    """Exit code and what to print."""
    if answer is None:
        return 0, [f"pip-audit: the service was not reached; {installed} packages went unchecked. This is no proof."]
    unchecked = sum("skip_reason" in package for package in answer["dependencies"])
    checked = len(answer["dependencies"]) - unchecked
    lines = [f"pip-audit: {checked} packages checked"]
    if unchecked:
        lines.append(f"pip-audit: {unchecked} packages went unchecked, the service does not know them. No proof.")
    return int(bool(findings(answer))), [*findings(answer), *lines]


def main() -> int:
    code, lines = verdict(report(), len(list(distributions())))
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
