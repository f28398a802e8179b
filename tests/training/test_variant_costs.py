"""A variant with really rounded weights serves its base's adapter, and what that costs is measured and shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.accounts.models import Project, User
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.base_models import check, variants
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from serving_client import EngineClient
from tests.builders import rows, write_jsonl
from tests.builders.rest import client as api_client
from tests.soak.engine_process import EngineProcess
from tests.tiny_model import save_base_model
from training.lm.token_sequences import padded
from training.models import Dataset, Evaluation
from training.worker.runner import work

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 7  # of a row's largest weight, on each side of zero: 4 bits


@pytest.fixture
def base(fresh_database: str, alice: User) -> BaseModel:
    return imported("tiny-llama", alice)


@pytest.fixture
def variant(base: BaseModel, alice: User) -> BaseModel:
    """The base's weights, rounded to 4 bits by row and stored as what they stand for."""
    model = base.folder.with_name("tiny-llama-4bit")
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(base.folder, model)
    weights = {name: rounded(weight) for name, weight in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return imported("tiny-llama-4bit", alice)


def imported(slug: str, by: User) -> BaseModel:
    """A folder of the models folder, registered and checked as an admin's click does it."""
    from django.conf import settings

    if not (settings.MODELS_DIR / slug).exists():
        save_base_model(settings.MODELS_DIR / slug)
    model = BaseModel.register(slug=slug, source=slug, by=by.as_actor())
    check.check(model.pk)
    model.refresh_from_db()
    assert model.status == "ready", model.message
    return model


def rounded(weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() < 2:
        return weight
    step = weight.abs().amax(1, keepdim=True) / STEPS
    return torch.round(weight / step) * step


@pytest.fixture
def sent(base: BaseModel, project: Project, alice: User, tmp_path: Path) -> AdapterVersion:
    torch.manual_seed(2)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(tmp_path / "sent"), save_embedding_layers=False)
    (tmp_path / "sent/README.md").unlink(missing_ok=True)
    adapter = Adapter.create(project=project, slug="dora", base_model=base, by=alice.as_actor())
    return AdapterVersion.publish(adapter, tmp_path / "sent", method="upload", by=alice.as_actor())


@pytest.fixture
def data(base: BaseModel, project: Project, alice: User, tmp_path: Path) -> Dataset:
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    return Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor())


def in_transformers(model: Path, adapter: Path | None, data: Dataset, tokens: int) -> float:
    """The loss of transformers and PEFT in nats a token, on all rows that the dataset holds out."""
    from training.lm.base_model import sequences_of

    opened: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    opened = PeftModel.from_pretrained(opened, str(adapter)).eval() if adapter else opened.eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    total = count = 0.0
    for sequence in sequences_of(data.folder() / "eval.jsonl", "data", tokenizer, 1024):
        ids, mask, labels = (torch.tensor(one) for one in padded([sequence], tokenizer.pad_token_id))
        with torch.inference_mode():
            mean = opened(input_ids=ids, attention_mask=mask, labels=labels).loss
        total, count = total + float(mean) * sequence.targets, count + sequence.targets
    assert count == tokens, "all held-out rows were measured"
    return total / count


@pytest.fixture
def engine(variant: BaseModel) -> Iterator[EngineProcess]:
    process = EngineProcess(variant.folder, "--served-model-name", variant.slug)
    process.start()
    try:
        process.ready()
        yield process
    finally:
        process.end()


def test_the_cost_is_what_transformers_and_peft_compute_and_is_shown(
    base: BaseModel,
    variant: BaseModel,
    sent: AdapterVersion,
    data: Dataset,
    ci: str,
    alice: User,
    client: Any,
    tmp_path: Path,
) -> None:
    body = {"project": "eu", "version": sent.served_name, "dataset": data.pk, "variant": variant.slug}
    refused = api_client(ci).post("/api/v1/evaluations/", body, format="json")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "not_a_variant")
    variants.declare(variant, base, reason="4 bits", by=alice.as_actor())
    assert api_client(ci).get(f"/api/v1/base-models/{variant.slug}/").json()["measurement"] is None
    answer = api_client(ci).post("/api/v1/evaluations/", body, format="json")
    assert answer.status_code == 202, answer.json()
    work()
    job = Evaluation.objects.get()
    assert (job.status, job.message) == (JobStatus.SUCCEEDED, "")
    cost = api_client(ci).get(f"/api/v1/base-models/{variant.slug}/").json()["measurement"]
    stored = sent.stored(tmp_path / "stored")
    expected = [
        in_transformers(model.folder, adapter, data, cost["tokens"])
        for adapter in (None, stored)
        for model in (variant, base)
    ]
    measured = [cost[name] for name in ("loss", "loss_base")]
    measured += [cost["with_version"][name] for name in ("loss", "loss_base")]
    assert measured == pytest.approx(expected, abs=1e-4)
    assert cost["difference"]["mean"] == pytest.approx(expected[0] - expected[1], abs=1e-4)
    assert cost["with_version"]["difference"]["mean"] == pytest.approx(expected[2] - expected[3], abs=1e-4)
    assert cost["difference"]["mean"] != 0
    assert cost["rows"] > 0
    client.force_login(alice)
    for page in (f"/base-models/{variant.slug}/", f"/base-models/{base.slug}/"):
        text = client.get(page).content.decode()
        assert "nats a token" in text
        assert "Not measured" not in text
    assert (
        f'On the variant <a href="/base-models/{variant.slug}/"'
        in client.get(f"/evaluations/{job.pk}/").content.decode()
    )
    # Whatever was measured was so with these files: other files were never measured.
    BaseModel.objects.filter(pk=variant.pk).update(digest="e" * 64)
    assert BaseModel.objects.get(pk=variant.pk).measurement is None


def test_an_engine_that_runs_the_variant_serves_the_adapter(
    base: BaseModel,
    variant: BaseModel,
    sent: AdapterVersion,
    engine: EngineProcess,
    project: Project,
    alice: User,
    tmp_path: Path,
) -> None:
    by = alice.as_actor()
    cluster = Cluster.create(project=project, slug="few-bits", base_model=variant, by=by)
    cluster.add_replica(url=engine.url, by=by)
    what: dict[str, Any] = {"project": project, "name": "short", "version": sent, "policy": {}, "by": by}
    with pytest.raises(Invalid, match="declare it a variant"):
        Alias.create(cluster=cluster, **what)
    variants.declare(variant, base, reason="4 bits", by=by)
    Alias.create(cluster=Cluster.objects.get(pk=cluster.pk), **what)
    reconcile()
    assert routing_table().versions[sent.served_name].replicas == (engine.url,)
    stored = sent.stored(tmp_path / "stored")
    rounded_model: Any = AutoModelForCausalLM.from_pretrained(variant.folder, dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(rounded_model, str(stored)).eval()
    tokenizer = AutoTokenizer.from_pretrained(variant.folder)
    encoded = tokenizer("the bank shall report each", return_tensors="pt")
    expected = adapted.generate(**encoded, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    words = str(tokenizer.decode(expected[0][encoded["input_ids"].shape[1] :], skip_special_tokens=True))
    with EngineClient(engine.url) as client:
        answer = client.complete(sent.served_name, "the bank shall report each", max_tokens=8, temperature=0)
    assert answer.text.split() == words.split()
    assert json.loads((variant.folder / "config.json").read_text())["model_type"] == "llama"
