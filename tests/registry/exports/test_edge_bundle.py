"""An alias as a folder for a machine without the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, Alias, BaseModel
from serving_client import EngineClient, EngineUnreachable
from tests.builders.ports import free_ports
from tests.byte_llama import save_adapter, save_model
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base_model(db: None, tmp_path: Path) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    save_model(model.folder)
    model.inspect()
    return model


@pytest.fixture
def make_version(alice: User, tmp_path: Path) -> Callable[..., AdapterVersion]:
    def make(adapter: Adapter, *, seed: int = 0) -> AdapterVersion:
        folder = save_adapter(adapter.base_model.folder, tmp_path / str(seed), seed, r=8, lora_alpha=16)
        return AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())

    return make


@pytest.fixture
def bundle(alias: Alias, tmp_path: Path) -> Path:
    call_command("export_edge", alias.name, str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def run(bundle: Path, base: Path, port: int) -> subprocess.Popen[bytes]:
    """As on the other machine, which has no more than the bundle, the base model and the package."""
    environ = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["sh", str(bundle / "run.sh"), str(base), str(port)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def answers(client: EngineClient) -> bool:
    try:
        return client.health()
    except EngineUnreachable:
        return False


@pytest.mark.slow
def test_its_run_command_serves_the_alias(bundle: Path, alias: Alias, base_model: BaseModel, tmp_path: Path) -> None:
    base = shutil.copytree(base_model.folder, tmp_path / "copy of the base")
    (port,) = free_ports(1)
    with run(bundle, base, port) as process, EngineClient(f"http://127.0.0.1:{port}") as client:
        try:
            wait_until(lambda: process.poll() is not None or answers(client), 60, "the engine answers")
            assert client.complete(alias.name, "The bank").text != client.complete("tiny", "The bank").text
            assert [model.name for model in client.models()] == ["tiny", alias.name]
        finally:
            process.kill()


@pytest.mark.parametrize("changed", ["adapter/adapter_model.safetensors", "base.json", "base"])
def test_changed_files_are_not_served(bundle: Path, base_model: BaseModel, tmp_path: Path, changed: str) -> None:
    base = shutil.copytree(base_model.folder, tmp_path / "base")
    victim = base / "config.json" if changed == "base" else bundle / changed
    victim.write_bytes(victim.read_bytes() + b" ")
    assert run(bundle, base, 1).wait(30) == 1


def test_what_cannot_be_exported(alias: Alias, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no alias 'other'"):
        call_command("export_edge", "other", str(tmp_path / "new"))
    with pytest.raises(CommandError, match="exists"):
        call_command("export_edge", alias.name, str(tmp_path))
