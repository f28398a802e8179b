"""The cast: a project, its people and one thing of each kind. Alice leads, Bob looks on, Charlie is outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings
from safetensors.numpy import save_file

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
from tests.builders.adapters import CONFIG, write_adapter
from tests.builders.people import member
from tests.builders.rows import rows, write_jsonl
from training.models import Dataset


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
