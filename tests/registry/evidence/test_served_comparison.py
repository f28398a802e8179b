"""A real engine's log-probabilities after a load, compared with PEFT's and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from django.utils.timezone import now
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from registry.evidence import served_comparison
from registry.evidence.served_comparison import compare_next, judged
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster, Replica, ServedComparison
from serving_client import EngineClient
from tests.builders.rest import client as api_client
from tests.fakes.server import Server
from tests.tiny_model import save_base_model

BASE, ADAPTED = [-3.0, -2.0, -4.0], [-2.0, -2.5, -3.0]


@pytest.mark.parametrize(
    ("base", "adapted", "verdict"),
    [
        (BASE, ADAPTED, "matches"),
        # Fewer bits move base and adapter alike.
        ([-3.2, -2.1, -4.3], [-2.21, -2.6, -3.29], "matches"),
        (BASE, BASE, "no_effect"),
        # Half of the scale, and another adapter.
        (BASE, [-2.5, -2.25, -3.5], "differs"),
        (BASE, [-4.0, -1.0, -5.0], "differs"),
    ],
)
def test_the_verdict_is_about_the_change(base: list[float], adapted: list[float], verdict: str) -> None:
    facts = judged({"tokens": [1, 2, 3, 4], "base": BASE, "adapted": ADAPTED}, base, adapted)
    assert facts["verdict"] == verdict
    assert bool(facts["reason"]) == (verdict != "matches")


@pytest.fixture
def tiny(db: None) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return model


@pytest.fixture
def version(project: Project, tiny: BaseModel, alice: User, tmp_path: Path) -> AdapterVersion:
    adapter = Adapter.create(project=project, slug="dora", base_model=tiny, by=alice.as_actor())
    torch.manual_seed(1)
    whole = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    model = get_peft_model(whole, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(str(tmp_path / "a"))
    (tmp_path / "a/README.md").unlink()
    return AdapterVersion.publish(adapter, tmp_path / "a", method="upload", by=alice.as_actor())


@pytest.fixture
def replica(project: Project, tiny: BaseModel, version: AdapterVersion, alice: User) -> Iterator[Replica]:
    """A real embedded engine that holds the version."""
    from serving_client.engine.api.app import create_app
    from serving_client.engine.engine import Engine, Limits
    from serving_client.engine.model import open_model

    engine = Engine(tiny.slug, open_model(str(tiny.folder), 512), Limits())
    with Server(create_app(engine)) as server:
        with EngineClient(server.url) as client:
            client.load_adapter(version.served_name, str(version.served_folder()))
        cluster = Cluster.create(project=project, slug="cpu", base_model=tiny, by=alice.as_actor())
        yield Replica.objects.create(
            cluster=cluster,
            url=server.url,
            is_healthy=True,
            engine_version="0.1",
            loaded={version.served_name: str(version.served_folder())},
        )


@pytest.mark.slow
def test_an_engine_is_compared_with_peft_once_for_each_release(
    replica: Replica, version: AdapterVersion, ci: str, client: Any, alice: User, tmp_path: Path
) -> None:
    row = compare_next()
    assert row is not None
    assert (row.verdict, row.reason, row.version) == ("matches", "", version)
    assert row.effect is not None
    assert row.difference is not None
    assert row.difference < 1e-4 < row.effect
    assert row.tokens == len(row.details["tokens"]) > 20
    assert compare_next() is None
    event = AuditEvent.objects.get(tag="adapter_version:compared")
    assert (event.evidence or {})["tokens"] == row.tokens
    body = api_client(ci).get(f"/api/v1/adapters/dora/versions/{version.number}/served-comparisons/").json()
    assert [each["verdict"] for each in body] == ["matches"]
    client.force_login(alice)
    assert "nats a token" in client.get(f"/adapters/dora/v{version.number}/").content.decode()
    # After an upgrade of the engine it is asked again; PEFT's numbers are those of before.
    Replica.objects.update(engine_version="0.2")
    again = compare_next()
    assert again is not None
    assert again.details["adapted"] == row.details["adapted"]
    # An engine that serves something else is found.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((version.served_folder() / name).read_bytes())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {name: -value if ".lora_B." in name else value for name, value in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with EngineClient(replica.url) as engine:
        engine.unload_adapter(version.served_name)
        engine.load_adapter(version.served_name, str(tmp_path))
    Replica.objects.update(engine_version="0.3")
    other = compare_next()
    assert other is not None
    assert other.verdict == "differs"


def test_a_base_model_that_is_too_large_is_not_compared(
    replica: Replica, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_comparison, "reference_of", None)
    settings.REFERENCE_BYTES = 1
    row = compare_next()
    assert row is not None
    assert (row.verdict, ServedComparison.objects.count()) == ("not_compared", 1)
    assert "up to 0 MB" in row.reason
    assert compare_next() is None
    # An hour later it is tried again, and what stays as it was is recorded once.
    ServedComparison.objects.update(created_at=now() - timedelta(hours=2))
    assert compare_next() == row
    assert compare_next() is None
    assert AuditEvent.objects.filter(tag="adapter_version:compared").count() == 1
