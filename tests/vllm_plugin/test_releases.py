"""Which releases of vLLM the row kernels serve, and what the plugin loads before vLLM calls it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from serving_client.vllm_plugin import NAME, VERSION
from serving_client.vllm_plugin.releases import CHECKED, MEASURED, refusal

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "serving_client/vllm_plugin"


@pytest.mark.parametrize("version", ["0.24.0", "0.24.1+cu130", "0.24.0rc1"])
def test_a_measured_release_is_served(version: str) -> None:
    assert refusal(version, takes_unmeasured=False) is None


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu"])
def test_a_release_that_was_not_measured_needs_a_word(version: str) -> None:
    refusal_text = refusal(version, takes_unmeasured=False)
    assert refusal_text == (
        f"vLLM {version} is not measured on a GPU, only its interfaces are tested; "
        "set ADAPTERHUB_VLLM_UNMEASURED=1 to run it so"
    )
    assert refusal(version, takes_unmeasured=True) is None


@pytest.mark.parametrize("version", ["0.23.2", "0.33.0", "0.240.0", "1.0.0", "0.2", "dev"])
def test_an_unknown_release_is_refused_whatever_is_set(version: str) -> None:
    refusal_text = refusal(version, takes_unmeasured=True)
    assert refusal_text
    assert refusal_text.startswith(
        f"vLLM {version} is unknown to this plugin, which knows {', '.join((*MEASURED, *CHECKED))};"
    )


def test_nothing_heavy_is_loaded_before_vllm_calls() -> None:
    code = (
        "import sys; sys.modules['serving_client'] = type(sys)('serving_client'); "
        "sys.modules['serving_client'].__path__ = ['serving_client']; "
        "import serving_client.vllm_plugin.registration; "
        "assert not {'torch', 'triton', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_wheel_holds_the_plugin_alone_and_names_its_entry_point(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in FOLDER.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        refusal_text = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {f"serving_client/vllm_plugin/{path.name}" for path in FOLDER.glob("*.py")}
    assert refusal_text.split() == [
        "[vllm.general_plugins]",
        "adapterhub",
        "=",
        "serving_client.vllm_plugin.registration:register",
    ]


def test_the_wheel_has_the_version_that_enters_the_compile_cache() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == (NAME, VERSION)
