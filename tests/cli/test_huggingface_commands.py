"""A version goes to a hub with its card, and an adapter comes from there; only the hub's far side is a fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion
from tests.builders import write_adapter
from tests.cli.command import Command
from tests.fakes import hub
from training.models import Evaluation


@pytest.fixture
def far() -> Any:
    with hub.running() as server:
        yield server


@pytest.mark.slow
def test_a_version_is_published_with_its_card(
    command: Command, version: AdapterVersion, far: hub.Hub, alice: User, tmp_path: Path
) -> None:
    Evaluation.launch(version, prompts=["the bank"], by=alice.as_actor())
    job = Evaluation.claim(Evaluation.objects.get().pk)
    assert job
    (tmp_path / "output").mkdir()
    measured = {"differences": {"base": {"mean": -0.5, "low": -0.75, "high": -0.25}}}
    (tmp_path / "output/result.json").write_text(json.dumps(measured))
    job.succeeded(tmp_path)
    there = {"HF_ENDPOINT": far.url, "HF_TOKEN": far.token, "HF_HOME": str(tmp_path / "hf")}
    done = command.run("hub", "publish", version.served_name, "acme/dora", "--json", **there)
    assert done.returncode == 0, done.stderr
    files = far.repositories["acme/dora"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert far.commits == [version.served_name]
    _, front, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == version.adapter.base_model.source
    for fact in (version.served_name, version.digest, version.base_digest, "base model tiny", "-0.7500 to -0.2500"):
        assert fact in text, text
    again = command.run("hub", "publish", version.served_name, "acme/dora", **there)
    assert (again.returncode, far.repositories["acme/dora"]) == (0, files)
    refused = command.run("hub", "publish", version.served_name, "acme/dora", **{**there, "HF_TOKEN": "hf_wrong"})
    assert refused.returncode == 3, refused.stderr
    assert command.run("hub", "publish", "dora", "acme/dora", **there).returncode == 2


@pytest.mark.slow
def test_an_adapter_is_imported(command: Command, adapter: Adapter, far: hub.Hub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "foreign", seed=4)
    far.repositories["acme/foreign"] = {file.name: file.read_bytes() for file in folder.iterdir()} | {"evil.py": b"1"}
    far.repositories["acme/empty"] = {"README.md": b"nothing"}
    there = {"HF_ENDPOINT": far.url, "HF_TOKEN": far.token, "HF_HOME": str(tmp_path / "hf")}
    done = command.run("hub", "import", "acme/foreign", "--adapter", "dora", "--json", **there)
    assert done.returncode == 0, done.stderr
    version = AdapterVersion.objects.get()
    assert (json.loads(done.stdout)["served_name"], version.adapter) == (version.served_name, adapter)
    assert version.lineage["conversions"] == [f"Imported from acme/foreign at {far.head('acme/foreign')}."]
    assert command.run("hub", "import", "acme/empty", "--adapter", "dora", **there).returncode == 2
    assert command.run("hub", "import", "acme/none", "--adapter", "dora", **there).returncode == 1


def test_a_hub_that_is_away_and_a_name_that_is_none_are_named(
    command: Command, adapter: Adapter, tmp_path: Path
) -> None:
    there = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    away = command.run("hub", "import", "acme/dora", "--adapter", "dora", "--json", **there)
    error = json.loads(away.stdout)["error"]
    assert (away.returncode, "http://127.0.0.1:1 (HF_ENDPOINT) does not respond" in error["message"]) == (1, True)
    wrong = command.run("hub", "import", "acme/dora/x", "--adapter", "dora", **there)
    assert (wrong.returncode, "owner/name" in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)
