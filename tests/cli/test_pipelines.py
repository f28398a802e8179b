"""The pipelines of docs/ci and the README's example: their very commands, against the whole product."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from adapterhub.client import Client, calls
from tests.builders.product import Product
from tests.cli.command import PROGRAM, ROOT
from tests.tiny_model import save_base_model, sentences, write_jsonl
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SCOPES = ("read", "train", "publish", "operate", "infer", "audit", "admin")
GITHUB = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text())
Shell = Callable[[str, Path], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    base = save_base_model(home / "models" / "smollm2-135m")
    running = Product(home)
    # Matrices this small take longer when threads share them.
    running.environ |= {"ADAPTERHUB_BASE_MODEL": str(base), "ADAPTERHUB_TORCH_THREADS": "1"}
    supervisor = running.start()
    yield running
    supervisor.terminate()
    supervisor.wait(60)
    for process in running.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def token(product: Product) -> str:
    """The names that the demo and the documents use, over the tiny model."""
    product.manage("create_project", "european-law")
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "european-law", *scopes)
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug="smollm2-135m", source="smollm2-135m"))
        base: calls.Call[Any] = calls.get("base-models/smollm2-135m/")

        def is_ready() -> bool:
            model = api.send(base)
            assert model["status"] in ("checking", "ready"), model
            return bool(model["status"] == "ready")

        wait_until(is_ready, 180, "the base model is checked")
        api.send(calls.post("clusters/", project="european-law", slug="laptop", base_model="smollm2-135m"))
        api.send(calls.post("replicas/", cluster="laptop", url=product.engine))
    return token


@pytest.fixture
def shell(product: Product, token: str, tmp_path: Path) -> Shell:
    """Bash as a runner has it: `adapterhub` in the path, address and token in the environment."""
    program = tmp_path / "bin" / "adapterhub"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ADAPTERHUB_URL": product.web,
        "ADAPTERHUB_TOKEN": token,
        "TOKEN": token,
        "CI_COMMIT_SHA": "0f0f0f",
        "ADAPTERHUB_CONFIG": str(tmp_path / "config.toml"),
    }

    def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-e", "-o", "pipefail", "-c", script],
            env=environ,
            cwd=folder,
            text=True,
            capture_output=True,
            check=False,
            timeout=400,
        )

    return run


def readme_example() -> str:
    """The indented block below the README's heading on pipelines."""
    section = (ROOT / "README.md").read_text().split("## In a pipeline")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))


def commands(job: dict[str, Any]) -> str:
    """What a job of GitHub Actions runs after its installation."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step and step.get("name") != "Install")


def checkout(folder: Path, order: slice) -> Path:
    """Data whose words come in this order: what learned another order is worse there, so that no gate refuses."""
    folder.mkdir()
    shutil.copy(ROOT / "docs/ci/adapterhub.yaml", folder)
    texts = [" ".join(row["text"].split()[order]) for row in sentences(120)]
    # The number makes each row another one: equal rows would end up in one split.
    write_jsonl(folder / "rows.jsonl", [{"text": f"{number} {text}"} for number, text in enumerate(texts)])
    return folder


def promoted(shell: Shell, product: Product, token: str, folder: Path, version: str) -> None:
    """The rollout that a pipeline opened comes to its good end, and then the router answers with its candidate."""
    done = shell("adapterhub promote compliance --wait --reason good", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    with Client(product.web, token) as api:
        last = api.send(calls.rollouts("compliance"))["results"][0]
        assert (last["status"], last["candidate"]) == ("promoted", version)
        assert api.send(calls.alias("compliance"))["version"] == version
    wait_until(lambda: answering(product, token) == version, 60, f"the router answers with {version}")


def answering(product: Product, token: str) -> str:
    body = {"model": "compliance", "prompt": "the bank shall", "max_tokens": 1}
    answer = httpx.post(f"{product.router}/v1/completions", json=body, headers={"Authorization": f"Bearer {token}"})
    return answer.headers.get("X-Adapter-Version", "")


def test_the_documented_pipelines_do_what_they_say(shell: Shell, product: Product, token: str, tmp_path: Path) -> None:
    first = checkout(tmp_path / "first", slice(None))
    (first / "docs").mkdir()
    shutil.copytree(ROOT / "docs/ci", first / "docs/ci")
    shutil.copy(first / "rows.jsonl", first / "docs/ci/rows.jsonl")
    example = readme_example()
    assert "http://127.0.0.1:8000" in example
    done = shell(example.replace("http://127.0.0.1:8000", product.web).replace(".venv/bin/", ""), first)
    assert done.returncode == 0, done.stderr
    with Client(product.web, token) as api:
        served = api.send(calls.alias("compliance"))["version"]
        assert served.startswith("european-law.eu-compliance.v1-")
        again = shell("adapterhub plan", first)
        assert again.stdout == "Nothing changed: everything is as the file says.\n", again.stdout

        second = checkout(tmp_path / "second", slice(None, None, -1))
        planned = shell(commands(GITHUB["jobs"]["plan"]), second)
        kinds = re.findall(r"^[+~>] (\w+) ([a-z ]+?) \S+:", planned.stdout, re.M)
        assert kinds == [
            ("create", "dataset"),
            ("run", "rank analysis"),
            ("run", "training"),
            ("run", "evaluation"),
            ("open", "rollout"),
        ], planned.stdout + planned.stderr
        applied = shell(commands(GITHUB["jobs"]["apply"]), second)
        assert applied.returncode == 0, applied.stderr
        result = json.loads((second / "applied.json").read_text())
        opened = api.send(calls.rollout(result["rollout"]["id"]))
        assert (opened["stable"], opened["candidate"]) == (served, result["version"])
        assert result["version"].startswith("european-law.eu-compliance.v2-")
        assert shell("adapterhub plan", second).stdout.startswith("Nothing changed")
        promoted(shell, product, token, second, result["version"])
        served = result["version"]

        third = checkout(tmp_path / "third", slice(None, None, 2))
        finished = shell("\n".join(GITLAB["adapter"]["script"]), third)
        assert finished.returncode == 0, finished.stderr
        last = api.send(calls.rollouts("compliance"))["results"][0]
        assert (last["stable"], last["reason"]) == (served, "0f0f0f")
        assert last["candidate"].startswith("european-law.eu-compliance.v3-")
        promoted(shell, product, token, third, last["candidate"])


def test_they_install_the_command_line_with_its_packages() -> None:
    """pip accepts the line, with this checkout for the wheel; the pins are the project's own."""
    jobs = [*GITHUB["jobs"].values()]
    lines = [step["run"] for job in jobs for step in job["steps"] if step.get("name") == "Install"]
    lines += GITLAB["adapter"]["before_script"]
    [line] = set(lines)
    [*pip, requirement] = shlex.split(line.replace("$ADAPTERHUB_PACKAGE", ROOT.as_uri()))
    assert (pip, Requirement(requirement).extras) == (["pip", "install"], {"cli"})
    command = [sys.executable, "-m", *pip, "--dry-run", "--no-deps", "--no-build-isolation", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Would install adapterhub-" in done.stdout
