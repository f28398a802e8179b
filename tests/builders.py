"""Plain builders and the cast as fixtures. Weights are real safetensors files of a tiny Llama's shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from safetensors.numpy import save_file

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
from training.models import Dataset

SHAPES = {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16),
          "gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}  # fmt: skip
LAYERS = 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}


def module_name(layer: int, kind: str) -> str:
    part = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{kind}"


def write_adapter(folder: Path, *, rank: int = 4, seed: int = 0, **config: Any) -> Path:
    """A PEFT folder with one rank everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for kind, (out, width) in SHAPES.items():
            name = f"base_model.model.{module_name(layer, kind)}"
            tensors[f"{name}.lora_A.weight"] = random.normal(size=(rank, width)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = random.normal(size=(out, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(SHAPES), **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def rows(count: int = 40) -> list[dict[str, str]]:
    return [{"prompt": f"the bank {n} shall ", "completion": f"report each incident {n} within four hours"}
            for n in range(count)]  # fmt: skip


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def project(db_or_fresh: None) -> Project:
    return Project.objects.create(slug="eu", name="European compliance")


@pytest.fixture
def db_or_fresh(request: pytest.FixtureRequest) -> None:
    """The cast lives in the test's own database when it has one, else in a transaction that is rolled back."""
    if "fresh_database" not in request.fixturenames:
        request.getfixturevalue("db")
    else:
        request.getfixturevalue("fresh_database")


def member(name: str, project: Project | None, role: str = "") -> User:
    user = User.objects.create_user(name, password=f"{name}-long-password")
    if project:
        Membership.objects.create(project=project, user=user, role=role)
    return user


@pytest.fixture
def alice(project: Project) -> User:
    return member("alice", project, Membership.Role.ADMIN)


@pytest.fixture
def bob(project: Project) -> User:
    return member("bob", project, Membership.Role.VIEWER)


@pytest.fixture
def charlie(db_or_fresh: None) -> User:
    return member("charlie", Project.objects.create(slug="other", name="Another tenant"), Membership.Role.ADMIN)


@pytest.fixture
def ci(project: Project, alice: User) -> str:
    """A bearer token of the project with every scope."""
    scopes = ["read", "train", "publish", "operate", "infer", "audit", "admin"]
    return ApiToken.issue(name="ci", project=project, scopes=scopes, created_by=alice)[1]


@pytest.fixture
def base_model(db_or_fresh: None) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text(json.dumps(CONFIG))
    (model.folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros((4, 4), np.float32)}, model.folder / "model.safetensors")
    model.inspect()
    return model


@pytest.fixture
def cluster(project: Project, base_model: BaseModel, alice: User) -> Cluster:
    return Cluster.create(project=project, slug="cpu", base_model=base_model, by=alice.as_actor())


@pytest.fixture
def adapter(project: Project, base_model: BaseModel, alice: User) -> Adapter:
    return Adapter.create(project=project, slug="dora", base_model=base_model, by=alice.as_actor())


@pytest.fixture
def make_version(alice: User, tmp_path: Path) -> Callable[..., AdapterVersion]:
    def make(adapter: Adapter, *, seed: int = 0, rank: int = 4, method: str = "upload") -> AdapterVersion:
        folder = write_adapter(tmp_path / f"{adapter.slug}-{seed}-{rank}", seed=seed, rank=rank)
        return AdapterVersion.publish(adapter, folder, method=method, by=alice.as_actor())

    return make


@pytest.fixture
def version(adapter: Adapter, make_version: Callable[..., AdapterVersion]) -> AdapterVersion:
    return make_version(adapter, seed=1)


@pytest.fixture
def candidate(adapter: Adapter, version: AdapterVersion, make_version: Callable[..., AdapterVersion]) -> AdapterVersion:
    return make_version(adapter, seed=2)


@pytest.fixture
def alias(project: Project, cluster: Cluster, version: AdapterVersion, alice: User) -> Alias:
    return Alias.create(
        project=project, name="compliance", cluster=cluster, version=version, policy={}, by=alice.as_actor()
    )


@pytest.fixture
def dataset(project: Project, alice: User, tmp_path: Path) -> Dataset:
    file = write_jsonl(tmp_path / "rows.jsonl", rows())
    return Dataset.create(project=project, name="incidents", file=file, filename="rows.jsonl", by=alice.as_actor())


@pytest.fixture(autouse=True)
def work_dirs() -> None:
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True)
