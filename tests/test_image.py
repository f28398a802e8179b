"""What the Dockerfile does with the sources, done here: its folder, and the installation into a clean environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
LAST_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]


def copied() -> list[str]:
    """What the last stage takes from the sources."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", LAST_STAGE, re.M)
    return [name for line in lines for name in line.split()]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    folder = tmp_path / "app"
    folder.mkdir()
    for name in copied():
        assert name in let_through, f"{name} does not enter the build"
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def environment(app: Path, tmp_path: Path) -> Path:
    """A clean one, after the image's own command; the packages of the requirements are lent by this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    [command] = re.findall(r"^RUN (pip install .*--editable .*)$", LAST_STAGE, re.M)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv"), *shlex.split(command)[1:]]
    done = subprocess.run(pip, cwd=app, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [packages] = (tmp_path / "venv/lib").glob("python3*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "lent.pth").write_text("\n".join(lent))
    return tmp_path / "venv"


def test_the_image_has_the_command_and_its_version(environment: Path, app: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def says(*command: str | Path) -> str:
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "promote" in says(environment / "bin/adapterhub", "--help")
    told = "import adapterhub.cli, importlib.metadata as m; print(m.version('adapterhub'), adapterhub.cli.__file__)"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert says(environment / "bin/python", "-c", told).split() == [version, str(app / "adapterhub/cli/__init__.py")]
