"""What adapter slots take of a replica's memory: as the embedded engine really reserves it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from registry.models import BaseModel, Cluster
from registry.serving.slot_memory import MIB, require_memory
from serving_client.engine.adapters.adapter import read_adapter
from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.model import open_model
from tests.byte_llama import save_adapter, save_model

SLOTS, RANK = 8, 64


@pytest.fixture
def base_model(db: None) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    save_model(model.folder)
    model.inspect()
    return model


def reserved(base_model: BaseModel, folder: Path) -> int:
    """Bytes of all slots after an adapter of the highest rank came."""
    opened = open_model(str(base_model.folder), 128)
    batch = RunningBatch(opened.model, max_loras=SLOTS, ends=opened.ends)
    save_adapter(base_model.folder, folder, 1, r=RANK, lora_alpha=RANK)
    batch.residents.admit(read_adapter("one", folder, batch.module_shapes, max_rank=RANK), set())
    return sum(tensor.nbytes for module in batch._modules.values() for tensor in (module._down, module._up))


def test_slots_take_what_the_plan_says(base_model: BaseModel, tmp_path: Path) -> None:
    assert SLOTS * base_model.slot_bytes(RANK, 4) == reserved(base_model, tmp_path / "adapter")


def test_what_does_not_fit_is_refused_with_what_would(cluster: Cluster) -> None:
    one = cluster.base_model.slot_bytes(RANK)
    assert require_memory(cluster, SLOTS * one, 2) == SLOTS * one
    output = io.StringIO()
    call_command("plan_slots", "cpu", "--memory-mib", str(-(-SLOTS * one // MIB)), stdout=output)
    assert "8 slots of rank 64 take" in output.getvalue()
    with pytest.raises(
        CommandError, match=r"8 slots of rank 64 for tiny take .* hold \d slots of rank 64, or 8 of rank"
    ):
        call_command("plan_slots", "cpu", "--memory-mib", "1")
    with pytest.raises(CommandError, match="no cluster 'gpu'"):
        call_command("plan_slots", "gpu", "--memory-mib", "1")
