"""Adapters that PEFT computes and engines do not: kept, never served, and reduced to a plain LoRA that is measured."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.accounts.models import Project, User
from adapterhub.artifacts import ArtifactError
from adapterhub.audit.models import AuditEvent
from adapterhub.core.actor import system
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster, VersionStatus
from registry.uploads import unservable
from registry.uploads.unservable import keep
from tests.builders.rest import client as api_client
from tests.builders.rest import problem
from tests.tiny_model import save_base_model
from training.models import Compression
from training.worker.runner import work

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LAYER_NORMS = [f"model.layers.{layer}.{name}_layernorm" for layer in (0, 1) for name in ("input", "post_attention")]


def whole(*names: str, targets: list[str] = ATTENTION) -> Callable[[], Any]:
    return lambda: LoraConfig(r=2, target_modules=targets, modules_to_save=list(names))


# Kind -> PEFT's configuration, the rank at which nothing of it is lost, and what no LoRA of a linear module holds.
KINDS: dict[str, tuple[Callable[[], Any], int, list[str]]] = {
    "DoRA": (lambda: LoraConfig(r=2, use_dora=True, target_modules=ATTENTION), 16, []),
    "LoHa": (lambda: LoHaConfig(r=2, alpha=4, target_modules=ATTENTION), 4, []),
    "LoKr": (lambda: LoKrConfig(r=2, alpha=4, target_modules=["q_proj", "down_proj"]), 16, []),
    "IA3": (lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), 16, []),
    "VeRA": (lambda: VeraConfig(r=4, target_modules=["q_proj", "o_proj"], projection_prng_key=3), 4, []),
    "a trained head": (lambda: LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"]), 2, ["lm_head"]),
    # PEFT takes every module whose name ends so.
    "trained norms": (whole("norm"), 2, [*LAYER_NORMS, "model.norm"]),
    "one trained norm": (whole("model.norm"), 2, ["model.norm"]),
    "norms of layers": (whole("input_layernorm"), 2, LAYER_NORMS[::2]),
    "whole linear modules": (whole("v_proj", targets=["q_proj"]), 8, []),
    "whole blocks": (whole("mlp"), 16, []),
    "a whole layer": (whole("layers.1", targets=["layers.0.self_attn.q_proj"]), 16, LAYER_NORMS[2:]),
    "both embeddings": (whole("embed_tokens", "lm_head"), 2, ["model.embed_tokens", "lm_head"]),
    "a LoRA on the head": (lambda: LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), 2, ["lm_head"]),
    "a LoRA on the embedding": (
        lambda: LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        2,
        ["model.embed_tokens"],
    ),
}


@pytest.fixture
def tiny(db_or_fresh: None) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return model


@pytest.fixture
def foreign(project: Project, tiny: BaseModel, alice: User) -> Adapter:
    return Adapter.create(project=project, slug="foreign", base_model=tiny, by=alice.as_actor())


def trained(base: Path, folder: Path, config: Any) -> Path:
    """PEFT's files of an adapter whose every weight is random."""
    torch.manual_seed(1)
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", str(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * (0.02 if "lm_head" in name else 0.2))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    whole: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        return torch.as_tensor((PeftModel.from_pretrained(whole, str(adapter)) if adapter else whole)(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_computes_is_kept_as_it_was(kind: str, foreign: Adapter, alice: User, tmp_path: Path) -> None:
    base = foreign.base_model.folder
    folder = trained(base, tmp_path / "sent", KINDS[kind][0]())
    expected = logits(base, folder)
    with pytest.raises(Invalid):
        AdapterVersion.publish(foreign, folder, method="upload", by=alice.as_actor(), foreign=True)
    version = keep(foreign, folder, by=alice.as_actor())
    assert version.status == VersionStatus.UNSERVABLE
    with pytest.raises(ArtifactError, match="other content"):
        version.require_signature()
    stored = version.stored(tmp_path / "stored")
    assert torch.allclose(logits(base, stored), expected, atol=1e-5)
    config = json.loads((stored / "adapter_config.json").read_bytes())
    assert "auto_mapping" not in config
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert AuditEvent.objects.filter(tag="adapter_version:kept").count() == 1


def test_a_head_under_its_name_in_training_is_kept(foreign: Adapter, alice: User, tmp_path: Path) -> None:
    """As a model's whole state dict names it."""
    base = foreign.base_model.folder
    folder = trained(base, tmp_path / "sent", KINDS["a trained head"][0]())
    expected, weights = logits(base, folder), folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    head = tensors.pop("base_model.model.lm_head.weight")
    save_file(tensors | {"base_model.model.lm_head.modules_to_save.default.weight": head}, weights)
    twice = shutil.copytree(folder, tmp_path / "twice")
    save_file(load_file(weights) | {"base_model.model.lm_head.weight": head.clone()}, twice / weights.name)
    version = keep(foreign, folder, by=alice.as_actor())
    assert torch.allclose(logits(base, version.stored(tmp_path / "stored")), expected, atol=1e-5)
    with pytest.raises(Invalid, match="Several tensors are"):
        keep(foreign, twice, by=alice.as_actor())


def reduce(source: Path, base: Path, out: Path, rank: int, *more: str) -> dict[str, Any]:
    from training.recipes.output.reduce import main

    arguments = ["--adapter", str(source), "--model", str(base), "--rank", str(rank), "--out", str(out), *more]
    assert main(arguments) == 0
    report: dict[str, Any] = json.loads(out.with_name(out.name + ".json").read_bytes())
    return report


def test_mica_is_a_plain_lora(foreign: Adapter, alice: User, tmp_path: Path) -> None:
    """It begins at singular vectors of the base weights, which stay as they are: PEFT saves A and B."""
    base = foreign.base_model.folder
    folder = trained(base, tmp_path / "sent", LoraConfig(r=2, init_lora_weights="mica", target_modules=ATTENTION))
    expected = logits(base, folder)
    version = AdapterVersion.publish(foreign, folder, method="upload", by=alice.as_actor(), foreign=True)
    assert "init_lora_weights" not in version.config or version.config["init_lora_weights"] is True
    assert torch.allclose(logits(base, version.stored(tmp_path / "stored")), expected, atol=1e-6)


NORM = "base_model.model.model.norm.weight"


@pytest.mark.parametrize(
    ("whole_tensors", "names", "message"),
    [
        ({NORM: 16}, ["norm"], "post_attention_layernorm.weight and 2 more, which the file lacks"),
        ({}, ["lm_head"], "lm_head.weight, which the file lacks"),
        ({NORM: 16, "base_model.model.model.q_norm.weight": 16}, ["model.norm"], "q_norm.weight is no tensor of this"),
        ({NORM: 8}, ["model.norm"], "another shape"),
    ],
)
def test_whole_modules_that_peft_would_not_open_or_not_read_are_refused_by_name(
    whole_tensors: dict[str, int], names: list[str], message: str, foreign: Adapter, alice: User, tmp_path: Path
) -> None:
    folder = trained(foreign.base_model.folder, tmp_path / "sent", LoraConfig(r=2, target_modules=ATTENTION))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(load_file(weights) | {name: torch.full((rows,), 2.0) for name, rows in whole_tensors.items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"modules_to_save": names}))
    with pytest.raises(Invalid, match=message):
        keep(foreign, folder, by=alice.as_actor())


def test_whole_modules_under_other_names_and_unnamed_ones_are_kept_as_peft_reads_them(
    foreign: Adapter, alice: User, tmp_path: Path
) -> None:
    """A trainer's wrappers stand in the names, and the configuration does not say that they were trained."""
    base = foreign.base_model.folder
    folder = trained(base, tmp_path / "sent", KINDS["norms of layers"][0]())
    expected, weights, config = (
        logits(base, folder),
        folder / "adapter_model.safetensors",
        folder / "adapter_config.json",
    )
    renamed = {
        name.replace("base_model.model.model.", "model._orig_mod.") if "norm" in name else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(renamed, weights)
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"modules_to_save": None}))
    version = keep(foreign, folder, by=alice.as_actor())
    assert version.config["modules_to_save"] == LAYER_NORMS[::2]
    assert torch.allclose(logits(base, version.stored(tmp_path / "stored")), expected, atol=1e-5)


def test_biases_are_named_as_left_out_and_not_merged_where_the_base_has_none(tmp_path: Path) -> None:
    base = save_base_model(tmp_path / "base")
    folder = trained(base, tmp_path / "sent", LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]))
    report = reduce(folder, base, tmp_path / "out", 2)
    assert report["left_out"] == [f"model.layers.{layer}.self_attn.q_proj.bias" for layer in (0, 1)]
    arguments = ["--adapter", str(folder), "--model", str(base), "--rank", "2", "--out", str(tmp_path / "again")]
    from training.recipes.output.reduce import main

    events = tmp_path / "events.jsonl"
    assert main([*arguments, "--merged", str(tmp_path / "merged"), "--events", str(events)]) == 2
    assert "the base layer has no bias. Reduce it without the merged model." in events.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_rank_nothing_of_the_linear_modules_is_lost(kind: str, tmp_path: Path) -> None:
    make, rank, left_out = KINDS[kind]
    base = save_base_model(tmp_path / "base")
    folder = trained(base, tmp_path / "sent", make())
    report = reduce(folder, base, tmp_path / "out", rank, "--merged", str(tmp_path / "merged"))
    assert report["left_out"] == left_out
    assert report["reconstruction_error"] < 1e-5
    expected = logits(base, folder)
    error = float((logits(base, tmp_path / "out") - expected).norm() / expected.norm())
    assert error < 1e-5 if not left_out else error > 1e-4
    # The merged model holds all of it.
    assert float((logits(tmp_path / "merged") - expected).norm() / expected.norm()) < 1e-5


def test_a_lower_rank_loses_what_the_report_says(tmp_path: Path) -> None:
    base = save_base_model(tmp_path / "base")
    folder = trained(base, tmp_path / "sent", LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "the bank shall report each incident " * 3}) + "\n" for _ in range(8)))
    reports = [reduce(folder, base, tmp_path / str(rank), rank, "--data", str(data)) for rank in (8, 4, 1)]
    errors = [report["reconstruction_error"] for report in reports]
    assert errors[0] < 1e-5 < errors[1] < errors[2]
    assert abs(reports[0]["loss_after"] - reports[0]["loss_before"]) < 1e-4
    assert reports[2]["loss_base"] > 0
    ranks = {
        tensor.shape[0] for name, tensor in load_file(tmp_path / "1/adapter_model.safetensors").items() if "_A" in name
    }
    assert ranks == {1}


@pytest.mark.slow
def test_a_kept_version_is_reduced_by_a_job_and_its_lineage_names_it(
    fresh_database: str, foreign: Adapter, alice: User, ci: str, tmp_path: Path
) -> None:
    base = foreign.base_model.folder
    make = KINDS["a trained head"][0]
    source = keep(foreign, trained(base, tmp_path / "sent", make()), by=alice.as_actor())
    answer = api_client(ci).post(
        f"/api/v1/adapters/foreign/versions/{source.number}/compress/",
        {"budget": {"max_rank": 1}, "keeps_merged": True},
        format="json",
    )
    assert answer.status_code == 202, answer.json()
    work()
    job = Compression.objects.get()
    assert (job.status, job.message) == (JobStatus.SUCCEEDED, "")
    version = job.version
    assert version is not None
    assert (version.status, version.max_rank) == (VersionStatus.READY, 1)
    assert version.lineage["compressed_from"]["served_name"] == source.served_name
    assert version.lineage["left_out"] == ["lm_head"]
    assert version.metrics["loss_after"] != version.metrics["loss_before"]
    assert (job.loss_before, job.loss_after) == (version.metrics["loss_before"], version.metrics["loss_after"])
    # The merged model is what a base model registered from this version is made of.
    whole = BaseModel.register_version(slug="merged", version=version, by=alice.as_actor())
    from registry.base_models.fetch import fetch_base_model

    fetch_base_model(whole)
    expected = logits(base, source.stored(tmp_path / "stored"))
    assert float((logits(whole.folder) - expected).norm() / expected.norm()) < 1e-5


def test_a_kept_version_is_served_nowhere(foreign: Adapter, project: Project, alice: User, tmp_path: Path) -> None:
    folder = trained(foreign.base_model.folder, tmp_path / "sent", KINDS["DoRA"][0]())
    version = keep(foreign, folder, by=alice.as_actor())
    cluster = Cluster.create(project=project, slug="cpu", base_model=foreign.base_model, by=alice.as_actor())
    with pytest.raises(Invalid, match="unservable, not ready"):
        version.require_servable_on(cluster)
    assert version not in AdapterVersion.objects.ready()
    with pytest.raises(Invalid, match="max_rank"):
        Compression.launch(version, {"uniform_rank": 1}, by=alice.as_actor())


def test_what_can_be_served_is_not_kept_and_what_peft_cannot_open_neither(
    foreign: Adapter, alice: User, tmp_path: Path
) -> None:
    base = foreign.base_model.folder
    plain = trained(base, tmp_path / "plain", LoraConfig(r=2, target_modules=ATTENTION))
    with pytest.raises(Conflict, match="without `keep`"):
        keep(foreign, plain, by=alice.as_actor())
    broken = trained(base, tmp_path / "broken", LoraConfig(r=2, use_dora=True, target_modules=ATTENTION))
    config = json.loads((broken / "adapter_config.json").read_bytes())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(Invalid, match="changed before the training"):
        keep(foreign, broken, by=alice.as_actor())


def test_the_check_and_the_upload_say_that_it_can_be_kept(ci: str, foreign: Adapter, tmp_path: Path) -> None:
    folder = trained(foreign.base_model.folder, tmp_path / "sent", KINDS["DoRA"][0]())

    def files() -> dict[str, Any]:
        return {
            "adapter_model": (folder / "adapter_model.safetensors").open("rb"),
            "adapter_config": (folder / "adapter_config.json").open("rb"),
        }

    place = "/api/v1/adapters/foreign/versions/"
    problem(api_client(ci).post(place, files(), format="multipart"), 422, "bad_adapter")
    body = problem(
        api_client(ci).post(place, files() | {"keep": "true", "fold": "true"}, format="multipart"), 422, "invalid"
    )
    assert body["errors"][0]["field"] == "fold"
    answer = api_client(ci).post(place, files() | {"keep": "true"}, format="multipart")
    assert (answer.status_code, answer.json()["status"]) == (201, "unservable")
    raw = (folder / "adapter_model.safetensors").read_bytes()
    packed = b"".join(api_client(ci).get(f"{place}1/download/").streaming_content)  # type: ignore[attr-defined]
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.read("adapter_model.safetensors") == (folder / "adapter_model.safetensors").read_bytes()
    problem(api_client(ci).get(f"{place}1/export/"), 409, "unservable")
    checked = api_client(ci).post(
        f"{place}check/",
        {
            "adapter_config": (folder / "adapter_config.json").open("rb"),
            "header": files()["adapter_model"],
            "size": len(raw),
        },
        format="multipart",
    )
    assert (checked.json()["accepted"], checked.json()["reducible"]) == (False, True)


def test_a_kept_version_is_downloaded_after_it_was_archived(
    client: Any, ci: str, foreign: Adapter, alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is from before such versions were signed. No replica loads either."""
    place = "/api/v1/adapters/foreign/versions/"
    weights = {}
    for number, kind in ((1, "DoRA"), (2, "LoHa")):
        folder = trained(foreign.base_model.folder, tmp_path / kind, KINDS[kind][0]())
        weights[number] = (folder / "adapter_model.safetensors").read_bytes()
        if number == 2:
            monkeypatch.setattr(unservable, "sign", lambda *_: "")
        keep(foreign, folder, by=alice.as_actor())
    client.force_login(alice)
    for version in foreign.versions.all():
        version.archive(reason="old", by=alice.as_actor())
        answer = api_client(ci).get(f"{place}{version.number}/download/")
        packed = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            assert archive.read("adapter_model.safetensors") == weights[version.number]
        problem(api_client(ci).get(f"{place}{version.number}/export/"), 409, "unservable")
        page = client.get(f"/adapters/foreign/v{version.number}/").content.decode()
        assert "Download its files" in page
        assert "cannot be served" in page
        with pytest.raises(ArtifactError, match="other content"):
            version.fetch(tmp_path / "served")


def test_the_page_offers_the_reduction_and_queues_it(
    client: Any, foreign: Adapter, alice: User, tmp_path: Path
) -> None:
    folder = trained(foreign.base_model.folder, tmp_path / "sent", KINDS["DoRA"][0]())
    version = keep(foreign, folder, by=system("test"))
    client.force_login(alice)
    page = client.get(f"/adapters/foreign/v{version.number}/").content.decode()
    assert "Engines cannot serve it as it is" in page
    assert f"/adapters/eu.foreign/v{version.number}/reduce/" in page
    assert "a general text" in client.get(f"/adapters/foreign/v{version.number}/reduce/").content.decode()
    answer = client.post(f"/adapters/foreign/v{version.number}/reduce/", {"max_rank": 2, "keeps_merged": "on"})
    job = Compression.objects.get()
    assert answer["Location"] == f"/compressions/{job.pk}/"
    assert (job.budget, job.keeps_merged) == ({"max_rank": 2}, True)
    assert "a general text" in client.get(answer["Location"]).content.decode()
