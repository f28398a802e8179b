"""`adapterhub check` and `push --from auto`, as processes against a running site."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from registry.models import Adapter, AdapterVersion
from tests.builders import write_adapter
from tests.cli.command import Command

WEIGHTS = "adapter_model.safetensors"


def test_every_fault_is_printed_and_nothing_is_stored(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", bias="all", use_dora=True, base_model_name_or_path="meta/other")
    done = command("check", str(folder), "--adapter", "dora")
    assert done.returncode == 2, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "fault adapter_config.json.bias",
        "fault adapter_config.json.use_dora",
        "fault adapter_config.json.base_model_name_or_path",
        "3 faults",
    ]
    refused = command("push", str(folder), "--adapter", "dora")
    assert (refused.returncode, refused.stderr.count("adapter_config.json.")) == (2, 3)
    assert "confirm_base" in refused.stderr
    assert not AdapterVersion.objects.exists()


def test_a_runs_folder_in_float64_is_checked_and_pushed(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "run/checkpoint-20")
    (tmp_path / "run/checkpoint-7").mkdir()
    before = load_file(folder / WEIGHTS)
    save_file({name: tensor.astype(np.float64) for name, tensor in before.items()}, folder / WEIGHTS)
    assert command("check", str(tmp_path / "run"), "--adapter", "dora", "--json").returncode == 0
    done = command("push", str(tmp_path / "run"), "--adapter", "dora", "--from", "auto", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "checking"
    version = AdapterVersion.objects.get()
    assert version.lineage["conversions"] == ["Taken from checkpoint-20/.", f"{len(before)} tensors of F64 converted."]
    assert len(version.lineage["source_sha256"]) == 64
    after = load_file(version.stored(tmp_path / "out") / WEIGHTS)
    assert {name: tensor.tolist() for name, tensor in after.items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }


def test_a_folder_in_another_layout_names_the_option(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    write_adapter(tmp_path / "run/checkpoint-20")
    refused = command("push", str(tmp_path / "run"), "--adapter", "dora")
    assert (refused.returncode, "--from auto" in refused.stderr) == (2, True)
