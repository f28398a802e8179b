"""Every method through the gpu worker: a run becomes a version, engines serve it, and PEFT computes the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapterhub.accounts.models import Project, User
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from adapterhub.workspace import store
from registry.models import Adapter, AdapterVersion, BaseModel
from serving_client.engine.adapters.adapter import read_adapter
from serving_client.engine.api.app import create_app
from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.model import open_model
from tests.builders import rows, write_jsonl
from tests.tiny_model import SMOLLM2, save_base_model
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run
from training.worker.runner import work

pytestmark = pytest.mark.slow

FAST = {"rank": 4, "steps": 20, "batch_size": 2, "max_length": 32, "eval_tokens": 64, "galore_rank": 4}
RATES = {"lora": 0.05, "qlora": 0.05, "dora": 0.05, "adalora": 0.05, "galore": 0.05, "full": 0.02}
WHOLE = ("galore", "full")
PROMPT = [6, 7, 0, 8, 9]


@pytest.fixture
def line_of_work(project: Project, alice: User) -> Adapter:
    model = BaseModel.objects.create(slug="tiny-smollm2", source="tiny-smollm2")
    if not model.folder.exists():
        save_base_model(model.folder, **SMOLLM2)
    model.inspect()
    return Adapter.create(project=project, slug="trained", base_model=model, by=alice.as_actor())


@pytest.fixture
def long_dataset(project: Project, alice: User, tmp_path: Path) -> Dataset:
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    return Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor())


@pytest.mark.parametrize("method", RATES)
def test_a_method_ends_in_a_version_that_is_served_as_peft_computes_it(
    method: str, trained: AdapterVersion, tmp_path: Path
) -> None:
    base = trained.adapter.base_model.folder
    served = trained.fetch(tmp_path / "served")
    peft = PeftModel.from_pretrained(loaded(base), str(trained.stored(tmp_path / "stored"))).eval()
    assert torch.allclose(engine_logits(base, served), logits_of(peft), atol=1e-4)
    assert not torch.allclose(logits_of(peft), logits_of(loaded(base)), atol=0.01)
    assert asyncio.run(answered(base, served)) == greedy(peft, 6)


@pytest.fixture
def trained(method: str, line_of_work: Adapter, long_dataset: Dataset, alice: User, tmp_path: Path) -> AdapterVersion:
    """The version that a run of the method ended in; its loss fell."""
    chosen = {**FAST, "learning_rate": RATES[method]}
    run = launch_run(
        adapter=line_of_work, dataset=long_dataset, hyperparameters=chosen, method=method, by=alice.as_actor()
    )
    work()
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    losses = [metric.values["loss"] for metric in run.metrics.all()]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert run.loss_after < run.loss_before - 0.3
    assert run.version.method == method
    assert run.version.metrics.get("loss_served", run.loss_after) < run.loss_before
    if method in WHOLE:
        checkpoint = store().fetch_dir(run.version.metrics["checkpoint"], tmp_path / "checkpoint")
        assert run.version.metrics["reconstruction_error"] == pytest.approx(missed(run.version, checkpoint), abs=1e-4)
    return run.version


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder)).eval().requires_grad_(False)


def missed(version: AdapterVersion, checkpoint: Path) -> float:
    """||trained - (base + LoRA)|| / ||trained - base|| over the modules of the LoRA, from what was stored."""
    folder = version.stored(checkpoint.with_name("factors"))
    merged = PeftModel.from_pretrained(loaded(version.adapter.base_model.folder), str(folder)).merge_and_unload()
    base, whole = loaded(version.adapter.base_model.folder), loaded(checkpoint)
    error = total = 0.0
    for name, weight in whole.named_parameters():
        if "_proj" in name:
            error += float((weight - merged.get_parameter(name)).square().sum())
            total += float((weight - base.get_parameter(name)).square().sum())
    return (error / total) ** 0.5


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([PROMPT])).logits


def engine_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = loaded(base)
    batch = RunningBatch(model, max_loras=1, ends=frozenset())
    resident = read_adapter("one", adapter, batch.module_shapes, max_rank=64)
    batch.residents.admit(resident, set())
    batch.residents.route([resident])
    return logits_of(model)


def greedy(model: Any, count: int) -> list[int]:
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


async def answered(base: Path, adapter: Path) -> list[int]:
    """Six tokens from the engine's own HTTP, after the call by which the control loop loads a version."""
    app = create_app(Engine("tiny", open_model(str(base), 64), Limits()))
    body = {
        "model": "one",
        "prompt": PROMPT,
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as http,
    ):
        loading = await http.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": str(adapter)})
        assert loading.status_code == 200, loading.text
        return list((await http.post("/v1/completions", json=body)).json()["choices"][0]["token_ids"])


def test_rslora_is_pefts_own_in_a_configuration_that_every_engine_reads(
    line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    run = TrainingRun.planned(
        adapter=line_of_work, dataset=long_dataset, hyperparameters={"rank": 9, "rslora": 1}, by=alice.as_actor()
    )
    plan = run.rank_plan()
    folded, pefts = (
        get_peft_model(loaded(line_of_work.base_model.folder), LoraConfig(r=9, target_modules=["q_proj"], **fields))
        for fields in ({"lora_alpha": plan["lora_alpha"]}, {"lora_alpha": 18, "use_rslora": True})
    )
    scales = [
        model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").scaling for model in (folded, pefts)
    ]
    assert scales[0] == scales[1] == {"default": pytest.approx(6)}


@pytest.mark.parametrize(
    ("method", "chosen", "fragment"),
    [
        ("dora", {"init": "eva"}, "init = eva is only for lora"),
        ("lora", {"init": "magic"}, "init is 'magic'; choose one of random, eva"),
        ("lora", {"devices": 0}, "devices is 0"),
        ("galore", {"rslora": 1}, "rslora is only for lora, qlora, dora"),
    ],
)
def test_what_does_not_fit_is_refused(
    method: str, chosen: dict[str, object], fragment: str, line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    with pytest.raises(Invalid) as refused:
        launch_run(
            adapter=line_of_work, dataset=long_dataset, hyperparameters=chosen, method=method, by=alice.as_actor()
        )
    assert fragment in refused.value.detail
    assert not TrainingRun.objects.exists()
