"""Imports go one way, and heavy libraries load only where they work."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("serving_client", "training", "adapterhub", "registry")
# From the ground up: a module may import its own layer and those before it.
LAYERS = ("pure", "leaves", "registry", "training", "root")
PURE = ("serving_client", "training.tars", "training.recipes")
PROJECT_ROOT = ("adapterhub.settings", "adapterhub.urls", "adapterhub.celery", "adapterhub.asgi", "adapterhub.apps",
                "adapterhub.checks", "adapterhub.demo")  # fmt: skip
DJANGO_FREE = (*PURE, "adapterhub.embedded", "adapterhub.environment", "adapterhub.demo", "adapterhub.artifacts",
               "adapterhub.client", "adapterhub.cli", "adapterhub.sync", "adapterhub.tracing",
               "adapterhub.jobs.traced")  # fmt: skip
# telemetry: variables that a standard names for every program. The plugin runs in vLLM's processes, not in ours.
MAY_READ_ENVIRON = {"adapterhub.environment", "adapterhub.jobs.child", "serving_client.telemetry",
                    "serving_client.vllm_plugin.registration"}  # fmt: skip


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer_of(module: str) -> str:
    if within(module, PURE):
        return "pure"
    if within(module, PROJECT_ROOT):
        return "root"
    return {"adapterhub": "leaves"}.get(module.split(".")[0], module.split(".")[0])


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows_back(root: Path) -> list[str]:
    """`importer -> imported` for each import against the direction."""
    found = []
    for module, tree in modules(root):
        for target in imports(tree):
            ours = target.split(".")[0] in PACKAGES
            if ours and LAYERS.index(layer_of(target)) > LAYERS.index(layer_of(module)):
                found.append(f"{module} -> {target}")
            if target.split(".")[0] in ("django", "rest_framework", "celery") and within(module, DJANGO_FREE):
                found.append(f"{module} -> {target}")
    return found


def test_imports_go_one_way() -> None:
    assert arrows_back(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("registry/manifest.py", "from training.models import Dataset"),
        ("adapterhub/audit/models.py", "from registry.models import Alias"),
        ("serving_client/routing.py", "import adapterhub.artifacts"),
        ("training/tars/allocation.py", "import django"),
        ("training/rows.py", "from adapterhub import settings"),
    ],
)
def test_an_import_turned_round_is_found(tmp_path: Path, module: str, line: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / module).open("a") as stream:
        stream.write(f"\n{line}\n")
    assert len(arrows_back(tmp_path)) == 1


def test_only_the_control_loop_talks_to_engines() -> None:
    talkers = {module for module, tree in modules(ROOT) for target in imports(tree)
               if module.startswith("registry.") and target.startswith("serving_client")}  # fmt: skip
    assert talkers <= {"registry.reconcile", "registry.publishing", "registry.visits", "registry.outcomes"}


def test_the_namespaces_stay_empty() -> None:
    assert (ROOT / "adapterhub/__init__.py").read_text() == (ROOT / "training/__init__.py").read_text() == ""


def test_only_the_table_reads_the_environment() -> None:
    readers = {
        module
        for module, tree in modules(ROOT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name) and node.value.id == "os"
    }  # fmt: skip
    # What a launcher tells its processes is no setting: their rank, and the devices that they may see.
    launched = {f"training.{name}" for name in ("tars.team", "tars.boundary", "tars.__main__", "recipes.program")}
    passing_on = {"adapterhub.asgi", "adapterhub.celery", *launched}
    assert {name for name in readers - passing_on if not name.startswith("adapterhub.embedded")} == MAY_READ_ENVIRON


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after the code ran in a process of its own."""
    report = "\nimport sys; sys.stdout.write(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, env=dict(os.environ), capture_output=True,
                          text=True, check=True)  # fmt: skip
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
WORKER = "import adapterhub.celery as c; c.app.loader.import_default_modules(); c.app.finalize(); assert 'training.tasks.work' in c.app.tasks"  # noqa: E501


@pytest.mark.parametrize("process", [WEB, f"import django; django.setup()\n{WORKER}"])
def test_web_and_workers_bring_no_torch(process: str) -> None:
    assert loaded_by(process).isdisjoint({"torch", "transformers", "peft"})


SCHEDULE = """import django; django.setup()
import adapterhub.celery as c; c.app.loader.import_default_modules(); c.app.finalize()
print(*{entry["task"] for entry in c.app.conf.beat_schedule.values()} - set(c.app.tasks))"""


def test_a_worker_knows_every_task_that_beat_sends() -> None:
    """An unknown one is thrown away with a line in the log."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "adapterhub.settings"}
    done = subprocess.run([sys.executable, "-c", SCHEDULE], cwd=ROOT, env=environ, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.split() == []
