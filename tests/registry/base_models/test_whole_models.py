"""A version registered as a base model: its training's own checkpoint, or its base with the adapter merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from django.test import Client
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.workspace import store
from registry.base_models import fetch
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster
from registry.tasks import check_base_model
from serving_client.engine.model import open_model
from tests.builders.rest import client, problem
from tests.tiny_model import make_model, make_tokenizer, save_base_model

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def line_of_work(project: Project, alice: User) -> Adapter:
    model = BaseModel.objects.create(slug="tiny-whole", source="tiny-whole")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return Adapter.create(project=project, slug="whole", base_model=model, by=alice.as_actor())


def published(adapter: Adapter, folder: Path, alice: User, **metrics: Any) -> AdapterVersion:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    torch.manual_seed(1)
    get_peft_model(AutoModelForCausalLM.from_pretrained(str(adapter.base_model.folder)), config).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return AdapterVersion.publish(adapter, folder, method="full", metrics=metrics, by=alice.as_actor())


def registered(http: Client, slug: str, version: str) -> BaseModel:
    answer = http.post("/api/v1/base-models/", {"slug": slug, "version": version}, content_type="application/json")
    assert answer.status_code == 202, answer.content
    model = BaseModel.objects.get(slug=slug)
    check_base_model(model.pk)
    model.refresh_from_db()
    assert (model.status, model.message) == ("ready", "")
    return model


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=PROMPT).logits


def test_a_full_trainings_checkpoint_is_served_by_a_cluster_of_its_own(
    ci: str, line_of_work: Adapter, alice: User, tmp_path: Path
) -> None:
    trained = make_model(seed=7)
    trained.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    digest = store().put_dir(tmp_path / "model")
    version = published(line_of_work, tmp_path / "adapter", alice, checkpoint=digest)
    model = registered(client(ci), "whole-full", version.served_name)
    assert model.made_of == version.served_name
    assert torch.allclose(logits(open_model(str(model.folder), 64).model), logits(trained), atol=1e-5)
    cluster = Cluster.create(project=line_of_work.project, slug="own", base_model=model, by=alice.as_actor())
    assert cluster.base_model.digest == model.digest != line_of_work.base_model.digest


@pytest.mark.slow
def test_a_lora_becomes_its_base_with_it_merged(ci: str, line_of_work: Adapter, alice: User, tmp_path: Path) -> None:
    version = published(line_of_work, tmp_path / "adapter", alice)
    model = registered(client(ci), "whole-merged", version.served_name)
    base = AutoModelForCausalLM.from_pretrained(str(line_of_work.base_model.folder))
    expected = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    assert torch.allclose(logits(open_model(str(model.folder), 64).model), expected, atol=1e-4)


def test_what_cannot_be_made_is_said(ci: str, line_of_work: Adapter, alice: User, tmp_path: Path) -> None:
    version = published(line_of_work, tmp_path / "adapter", alice, checkpoint="0" * 64)
    model = BaseModel.register_version(slug="whole-lost", version=version, by=alice.as_actor())
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == "rejected"
    assert "cannot be created" in model.message
    assert not model.folder.exists()


@pytest.mark.parametrize(
    "body", [{}, {"source": "a", "version": "whole.v1"}, {"version": "none.v1"}, {"source": "version:whole.v1"}]
)
def test_neither_both_and_unknown_are_refused(body: dict[str, str], ci: str, line_of_work: Adapter) -> None:
    answer = client(ci).post("/api/v1/base-models/", {"slug": "x", **body}, content_type="application/json")
    assert answer.status_code == 422
    assert not BaseModel.objects.filter(slug="x").exists()


@pytest.mark.threat("E10")
@pytest.mark.parametrize("source", ["acme/model", "acme-labs/model", "Qwen/Other"])
def test_a_hubs_model_that_no_operator_lists_is_not_fetched(
    source: str, ci: str, line_of_work: Adapter, settings: Any
) -> None:
    """All projects would use what the admin of one has registered, and its chat template runs in the web process."""
    settings.BASE_MODEL_SOURCES = ["Qwen/Qwen3-8B", "acme-lab"]
    answer = client(ci).post("/api/v1/base-models/", {"slug": "x", "source": source}, content_type="application/json")
    assert problem(answer, 422, "source_not_allowed")["errors"][0]["field"] == "source"
    assert not BaseModel.objects.filter(slug="x").exists()


@pytest.mark.threat("E10")
def test_a_model_whose_owner_is_taken_from_the_list_is_not_fetched(
    ci: str, line_of_work: Adapter, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BASE_MODEL_SOURCES = ["acme"]
    body = {"slug": "x", "source": "acme/model"}
    assert client(ci).post("/api/v1/base-models/", body, content_type="application/json").status_code == 202
    settings.BASE_MODEL_SOURCES = []
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("the hub was asked"))
    model = BaseModel.objects.get(slug="x")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert (model.status, "ADAPTERHUB_BASE_MODEL_SOURCES" in model.message) == ("rejected", True)


def test_another_projects_version_does_not_exist(
    line_of_work: Adapter, alice: User, charlie: User, tmp_path: Path
) -> None:
    version = published(line_of_work, tmp_path / "adapter", alice)
    _, token = ApiToken.issue(name="other", project=Project.objects.get(slug="other"), scopes=["read", "admin"])
    answer = client(token).post(
        "/api/v1/base-models/", {"slug": "x", "version": version.served_name}, content_type="application/json"
    )
    assert "There is no version" in problem(answer, 422, "unknown_version")["detail"]
