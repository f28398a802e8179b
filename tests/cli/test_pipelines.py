"""The README's example, the pipelines of docs/ci and the page on Python: word for word, on the demo's state, twice."""

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
from adapterhub.demo.walkthrough import ADAPTER, ALIAS, CLUSTER, PROJECT
from adapterhub.embedded.options import DEFAULT_MODEL
from tests.builders.product import Product
from tests.cli.command import PROGRAM, ROOT
from tests.tiny_model import save_base_model, sentences, write_jsonl
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SCOPES = ("read", "train", "publish", "operate", "infer", "audit", "admin")
GITHUB = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text())
DECLARED = yaml.safe_load((ROOT / "docs/ci/adapterhub.yaml").read_text())
Done = subprocess.CompletedProcess[str]
Shell = Callable[..., Done]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    base = save_base_model(home / "models" / DEFAULT_MODEL)
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
    """A token, and what the demo leaves, on the tiny model: a person, rows, an adapter, a cluster, an alias on v1."""
    product.manage("create_project", PROJECT)
    password = product.home / "password"
    password.write_text("a password for the owner")
    product.manage("ensure_user", "owner", "--password-file", str(password), "--email", "owner@example.org")
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", PROJECT, *scopes)
    # The number makes each row another one: equal rows would end up in one split.
    rows = [{"text": f"{number} {row['text']}"} for number, row in enumerate(sentences(120))]
    described = {name: DECLARED["adapter"][name] for name in ("description", "tags")}
    data = write_jsonl(product.home / "work" / "european-law.jsonl", rows)
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug=DEFAULT_MODEL, source=DEFAULT_MODEL))
        api.wait(calls.get(f"base-models/{DEFAULT_MODEL}/"), 180)
        api.send(calls.post("clusters/", project=PROJECT, slug=CLUSTER, base_model=DEFAULT_MODEL))
        api.send(calls.post("replicas/", cluster=CLUSTER, url=product.engine))
        api.send(calls.create_adapter(PROJECT, ADAPTER, DEFAULT_MODEL, **described))
        dataset = api.wait(calls.upload_dataset(PROJECT, data))
        run = api.wait(calls.train(PROJECT, ADAPTER, dataset["id"], hyperparameters={"steps": 5}), 180)
        version = api.wait(calls.version(ADAPTER, 1), 60)
        assert run["version"] == version["served_name"]
        api.send(calls.create_alias(PROJECT, ALIAS, CLUSTER, version["served_name"], {}))
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

    def run(script: str, folder: Path, flags: tuple[str, ...] = ("-e", "-o", "pipefail")) -> Done:
        return subprocess.run(
            ["/bin/bash", *flags, "-c", script],
            env=environ,
            cwd=folder,
            text=True,
            capture_output=True,
            check=False,
            timeout=400,
        )

    return run


def readme_example(product: Product) -> str:
    """The indented block below the README's heading on pipelines, for this product's address and folder."""
    section = (ROOT / "README.md").read_text().split("## In a pipeline")[1].split("\n## ")[0]
    text = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    for documented, here in (
        ("http://127.0.0.1:8000", product.web),
        (".venv/bin/", ""),
        ("var/work/", f"{product.home}/work/"),
    ):
        assert documented in text
        text = text.replace(documented, here)
    return text


def commands(job: dict[str, Any]) -> str:
    """What a job of GitHub Actions runs after its installation."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step and step.get("name") != "Install")


def page_on_python() -> list[str]:
    """The programs of docs/python.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)


def test_the_page_on_python_does_what_it_says(
    product: Product, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(product.home / "work" / "european-law.jsonl", tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    first, second = page_on_python()
    assert len(first.splitlines()) == 10
    known: dict[str, Any] = {"token": token}
    with Client(product.web, token) as api:
        stable = api.send(calls.alias(ALIAS))["version"]
        for program, status, served in ((first, "promoted", 2), (second, "rolled_back", 2)):
            exec(program.replace("http://127.0.0.1:8000", product.web), known)  # noqa: S102 - the page is ours
            last = api.send(calls.rollouts(ALIAS))["results"][0]
            assert last["status"] == status
            assert api.send(calls.alias(ALIAS))["version"].startswith(f"{PROJECT}.{ADAPTER}.v{served}-")
        promoted = next(row for row in api.rows(calls.rollouts(ALIAS)) if row["status"] == "promoted")
        api.send(calls.roll_back(promoted, "as the demo ends"))
        wait_until(lambda: answering(product, token) == stable, 60, f"the router answers with {stable}")


def answering(product: Product, token: str) -> str:
    body = {"model": ALIAS, "prompt": "the bank shall", "max_tokens": 1}
    answer = httpx.post(f"{product.router}/v1/completions", json=body, headers={"Authorization": f"Bearer {token}"})
    return answer.headers.get("X-Adapter-Version", "")


def large_checkout(folder: Path) -> Path:
    """The shipped declaration with 34 MB of rows, which a worker checks."""
    folder.mkdir()
    shutil.copy(ROOT / "docs/ci/adapterhub.yaml", folder)
    texts = [row["text"] for row in sentences(340)]
    rows = [{"text": f"{number} {text} " * (100_000 // len(text))} for number, text in enumerate(texts)]
    write_jsonl(folder / "rows.jsonl", rows)
    assert (folder / "rows.jsonl").stat().st_size > 33 * 2**20
    return folder


def test_the_documented_pipelines_do_what_they_say(shell: Shell, product: Product, token: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(ROOT / "docs/ci", first / "docs/ci")
    with Client(product.web, token) as api:
        served = api.send(calls.alias(ALIAS))["version"]
        api.send(calls.set_policy(ALIAS, {"quorum": 1}))

        def present() -> tuple[int, ...]:
            lists = ("datasets/", "rank-analyses/", "training-runs/", "evaluations/", "rollouts/", "audit/events/")
            return tuple(len(list(api.rows(calls.get(path, page_size="200")))) for path in lists)

        before = present()
        done = shell(readme_example(product), first, ())
        assert (done.returncode, "people sign the plan" in done.stderr) == (8, True), done.stderr
        [opened] = [row for row in api.rows(calls.rollouts(ALIAS)) if row["status"] == "loading"]
        assert (opened["stable"], opened["waits_for_signature"]) == (served, True)
        after = present()
        assert [new - old for new, old in zip(after, before, strict=True)][:5] == [0, 1, 1, 1, 1]
        again = shell(readme_example(product), first, ())
        assert (again.returncode, present()) == (8, after), again.stderr

        large = large_checkout(tmp_path / "large")
        met = shell(commands(GITHUB["jobs"]["plan"]), large)
        assert (met.returncode, "has a rollout" in met.stderr) == (1, True), met.stderr
        assert shell("adapterhub cancel compliance --reason 'other data'", large).returncode == 0
        planned = shell(commands(GITHUB["jobs"]["plan"]), large)
        kinds = re.findall(r"^[+~>] (\w+) ([a-z ]+?) \S+:", planned.stdout, re.M)
        assert kinds == [
            ("create", "dataset"),
            ("run", "rank analysis"),
            ("run", "training"),
            ("run", "evaluation"),
            ("open", "rollout"),
        ], planned.stdout + planned.stderr
        results = []
        for script in (
            commands(GITHUB["jobs"]["apply"]),
            commands(GITHUB["jobs"]["apply"]),
            "\n".join(GITLAB["adapter"]["script"]) + " || [ $? -eq 8 ]",
        ):
            applied = shell(script, large)
            assert applied.returncode == 0, applied.stderr
            results.append((json.loads((large / "applied.json").read_text()), present()))
        (result, then), *repeated = results
        opened = api.send(calls.rollout(result["rollout"]["id"]))
        assert (opened["stable"], opened["candidate"], result["serving"]) == (served, result["version"], served)
        for once_more, now in repeated:
            assert (once_more["changes"], once_more["version"], now) == ([], result["version"], then)
        assert shell("\n".join(GITLAB["plan"]["script"]), large).returncode == 8


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
