"""Imports keep the contracts of pyproject.toml, and heavy libraries load only where they work."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("serving_client", "training", "adapterhub", "registry")
LINT = Path(sys.executable).with_name("lint-imports")
# telemetry: variables that a standard names for every program. The plugin runs in vLLM's processes, not in ours.
MAY_READ_ENVIRON = {
    "adapterhub.environment",
    "adapterhub.jobs.child",
    "serving_client.telemetry",
    "serving_client.vllm_plugin.registration",
}


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def broken_contracts(root: Path) -> list[str]:
    """The names of the contracts of pyproject.toml that the packages below `root` break."""
    command = [str(LINT), "--no-cache", "--no-logo", str(ROOT / "pyproject.toml")]
    environ = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)", done.stdout, re.M)
    assert verdicts, done.stdout + done.stderr
    return [name for name, verdict in verdicts if verdict == "BROKEN"]


def test_imports_keep_the_contracts() -> None:
    assert broken_contracts(ROOT) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (
            "registry/adapter_files/manifest.py",
            "from training.models import Dataset",
            "The registry does not know training",
        ),
        ("registry/models/alias.py", "from registry.serving import reconciler", "Layers of the registry"),
        ("registry/pages/aliases.py", "from registry.api import aliases", "Layers of the registry"),
        ("registry/experiments/metrics.py", "from django.conf import settings", "No Django in what runs without it"),
        ("registry/uploads/inbox.py", "import serving_client", "Only the control loop speaks to replicas and routers"),
        ("adapterhub/audit/models.py", "from registry.models import Alias", "What all apps share knows no app"),
        ("adapterhub/audit/models.py", "from adapterhub.accounts import memberships", "Layers of adapterhub"),
        ("serving_client/protocol.py", "import adapterhub.artifacts", "serving_client stands alone"),
        ("training/tars/allocation.py", "import django", "No Django in what runs without it"),
        ("training/lm/token_sequences.py", "from training.recipes import launch", "Layers of training"),
        ("training/datasets/rows.py", "from adapterhub import settings", "Nothing imports the project root"),
        (
            "training/datasets/rows.py",
            "from training.datasets import scan",
            "No circles, neither of modules nor of rooms",
        ),
    ],
)
def test_an_import_turned_round_is_found(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / module).open("a") as stream:
        stream.write(f"\n{line}\n")
    assert contract in broken_contracts(tmp_path)


def test_the_namespaces_stay_empty() -> None:
    assert (ROOT / "adapterhub/__init__.py").read_text() == (ROOT / "training/__init__.py").read_text() == ""


def test_only_the_table_reads_the_environment() -> None:
    readers = {
        module
        for module, tree in modules(ROOT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    # What a launcher tells its processes is no setting: their rank, their threads, and the devices that they may see.
    names = (
        "tars.distributed",
        "lm.error_reporting",
        "tars.__main__",
        "recipes.entrypoint",
        "datasets.scan_process",
        "datasets.hub_process",
        "recipes.preference.objectives",
        "recipes.lm_eval_task",
    )
    launched = {f"training.{name}" for name in names}
    roots = {"adapterhub.asgi", "adapterhub.celery", "adapterhub.manage"}
    passing_on = {*roots, "registry.base_models.download_process", *launched}
    assert {name for name in readers - passing_on if not name.startswith("adapterhub.embedded")} == MAY_READ_ENVIRON


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after the code ran in a process of its own."""
    report = "\nimport sys; sys.stdout.write(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "package", ["training.tars", "serving_client", "serving_client.router.app", "adapterhub.client", "adapterhub.cli"]
)
def test_pure_packages_bring_no_django(package: str) -> None:
    assert loaded_by(f"import {package}").isdisjoint({"django", "celery"})


def test_the_routing_library_and_the_planner_bring_no_torch() -> None:
    assert "torch" not in loaded_by(
        "import serving_client, training.tars.allocation, adapterhub.client, adapterhub.cli"
    )


WEB = "import adapterhub.asgi; from django.urls import get_resolver; get_resolver().url_patterns"
WORKER = """
import adapterhub.celery as c
c.app.loader.import_default_modules()
c.app.finalize()
assert 'training.tasks.work' in c.app.tasks
"""


@pytest.mark.parametrize("process", [WEB, f"import django; django.setup()\n{WORKER}"])
def test_web_and_workers_bring_no_torch(process: str) -> None:
    assert loaded_by(process).isdisjoint({"torch", "transformers", "peft"})


SCHEDULE = """import django; django.setup()
import adapterhub.celery as c; c.app.loader.import_default_modules(); c.app.finalize()
print(*{entry["task"] for entry in c.app.conf.beat_schedule.values()} - set(c.app.tasks))"""


@pytest.mark.slow
def test_a_worker_knows_every_task_that_beat_sends() -> None:
    """An unknown one is thrown away with a line in the log."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "adapterhub.settings"}
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULE], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_types_are_checked_strictly_in_all_packages() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert (set(mypy["packages"]), mypy["strict"]) == (set(PACKAGES), True)
    named = [name for override in mypy["overrides"] for name in override["module"]]
    third_parties = [name for name in named if "*" in name]
    # Triton's compiler has types of its own.
    kernels = {"serving_client.vllm_plugin.row_kernels", "serving_client.engine.kernels.decode"}
    assert {name for name in named if name.startswith(PACKAGES)} == kernels
    assert not [name for name in third_parties if name.startswith(PACKAGES)]
