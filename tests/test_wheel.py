"""The wheel is whole: built by way of the source distribution, installed in a new environment, and started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders.product import Product
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGES = ("adapterhub", "registry", "training", "serving_client")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))"


def tracked(*folders: str) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def build(what: str, source: Path, target: Path) -> Path:
    """What setuptools builds from the source when a frontend such as pip asks it to."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD.format(what), str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="adapterhub-wheel-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    clone = folder / "clone"
    names = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "manage.py", "templates", *PACKAGES)
    for name in tracked(*names):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    shutil.unpack_archive(build("build_sdist", clone, folder), folder / "unpacked", filter="data")
    [source] = (folder / "unpacked").iterdir()
    return build("build_wheel", source, folder)


@pytest.fixture(scope="module")
def python(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment that has the wheel; what it builds on is read from ours."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = ["--python", str(python), "install", "-q", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, such as that of our clone, are not read.
    (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def product(python: Path, folder: Path) -> Iterator[Product]:
    home = folder / "home"
    home.mkdir()
    product = Product(home, python=python, folder=folder)
    product.environ |= {"ADAPTERHUB_ENGINES": "0"}
    product.environ.pop("PYTHONPATH", None)
    yield product
    for process in product.processes():
        process.kill()


def test_it_holds_every_file_of_the_packages_and_the_templates(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    templates = {f"adapterhub/{name}" for name in tracked("templates")}
    # The plugin for vLLM is a wheel of its own, with a page and a project file of its own.
    packages = {name for name in tracked(*PACKAGES) if not re.search(r"vllm_plugin/.*\.(md|toml)$", name)}
    assert templates
    assert packages | templates == {name for name in inside if ".dist-info/" not in name}


def test_installed_in_a_new_environment_it_starts_and_shows_its_pages(product: Product, python: Path) -> None:
    where = [str(python), "-c", "import adapterhub.settings as s; print(s.__file__)"]
    settings = subprocess.run(where, cwd=product.home, env=product.environ, capture_output=True, text=True, check=True)
    assert Path(settings.stdout.strip()).is_relative_to(python.parents[1])
    supervisor = product.start()
    page = httpx.get(f"{product.web}/login/")
    assert page.status_code == 200, page.text
    [style] = set(re.findall(r'href="(/static/[^"]+base[^"]*\.css)"', page.text))
    assert httpx.get(f"{product.web}{style}").status_code == 200
    product.manage("create_project", "eu")
    token = product.manage("create_token", "ci", "--project", "eu", "--scope", "read")
    answer = httpx.get(f"{product.web}/api/v1/projects/", headers={"Authorization": f"Bearer {token}"})
    assert [project["slug"] for project in answer.json()["results"]] == ["eu"]
    os.kill(supervisor.pid, signal.SIGINT)
    supervisor.wait(30)
    wait_until(lambda: not product.processes(), 5, "every process is gone")
