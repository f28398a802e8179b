"""The check before an upload, the report that is kept, and an adapter that is accepted on a person's word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from safetensors.numpy import load_file, save_file

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster, VersionStatus
from registry.uploads import verification
from tests.builders import LAYERS, SHAPES, module_name, write_adapter
from tests.builders.rest import client as api_client
from tests.builders.rest import problem, upload_adapter

WEIGHTS = "adapter_model.safetensors"
PLACE = "/api/v1/adapters/dora/versions/"


def check(token: str, folder: Path, **fields: str) -> Any:
    raw = (folder / WEIGHTS).read_bytes()
    header = raw[: 8 + int.from_bytes(raw[:8], "little")]
    files = {
        "adapter_config": SimpleUploadedFile("c", (folder / "adapter_config.json").read_bytes()),
        "header": SimpleUploadedFile("h", header),
    }
    return api_client(token).post(f"{PLACE}check/", {**files, "size": str(len(raw)), **fields}, format="multipart")


def upload(token: str, folder: Path, **fields: str) -> Any:
    files = {
        "adapter_model": SimpleUploadedFile("m", (folder / WEIGHTS).read_bytes()),
        "adapter_config": SimpleUploadedFile("c", (folder / "adapter_config.json").read_bytes()),
    }
    return api_client(token).post(PLACE, {**files, **fields}, format="multipart")


def five_faults(folder: Path) -> Path:
    return write_adapter(
        folder,
        bias="all",
        use_dora=True,
        fan_in_fan_out=True,
        base_model_name_or_path="meta/other",
        target_modules=["q_proj"],
    )


def test_all_faults_are_named_at_once_and_nothing_is_stored(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = five_faults(tmp_path / "a")
    answer = check(ci, folder)
    assert answer.status_code == 200, answer.json()
    body = answer.json()
    fields = {finding["field"].rpartition(".")[2] for finding in body["findings"] if finding["level"] == "fault"}
    assert fields == {"bias", "use_dora", "fan_in_fan_out", "base_model_name_or_path", "target_modules"}
    assert all(finding["cause"] for finding in body["findings"])
    assert (body["accepted"], body["modules_found"], body["max_rank"]) == (False, len(SHAPES) * LAYERS, 4)
    assert not AdapterVersion.objects.exists()


def test_an_upload_is_refused_with_the_same_faults(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = five_faults(tmp_path / "a")
    faults = [finding for finding in check(ci, folder).json()["findings"] if finding["level"] == "fault"]
    body = problem(upload_adapter(api_client(ci), adapter, folder), 422, "bad_adapter")
    assert [(error["field"], error["code"], error["route"]) for error in body["errors"]] == [
        (finding["field"], finding["code"], finding["route"]) for finding in faults
    ]
    assert f"{len(faults) - 1} more" in body["detail"]


def test_a_common_unsloth_adapter_is_accepted_at_once(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a",
        auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "transformers", "unsloth_fixed": True},
        base_model_name_or_path="unsloth/tiny-unsloth-bnb-4bit",
        target_modules=r"(?:.*?(?:self_attn|mlp).*?(?:q|k|v|o|gate|up|down)_proj)",
        some_new_option=None,
        peft_version="0.21.2",
    )
    assert check(ci, folder).json()["accepted"]
    assert upload(ci, folder).status_code == 201
    version = AdapterVersion.objects.get()
    verification.check(version)
    version.refresh_from_db()
    assert version.status == VersionStatus.READY
    assert version.report["sent"]["base_model_name_or_path"] == "unsloth/tiny-unsloth-bnb-4bit"
    assert version.report["sent"]["peft_version"] == "0.21.2"
    assert json.loads(version.report["sent"]["configuration"])["auto_mapping"]["unsloth_fixed"] is True
    assert version.report["modules"] == {"expected": len(SHAPES) * LAYERS, "found": len(SHAPES) * LAYERS}
    assert {finding["code"] for finding in version.report["findings"]} == {
        "base_quantised",
        "targets_pattern",
        "fields_ignored",
    }


def test_control_characters_are_stored_as_text(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    """Postgres stores no NUL, and a terminal obeys an escape sequence."""
    odd = {"revision": "a\0\x1b[31m\nb", "peft_version": "0.1\0", "auto_mapping": {"\0": "\0"}, "off\0": None}
    folder = write_adapter(tmp_path / "a", rank_pattern={"a\0b": 4}, **odd)
    assert check(ci, folder).json()["accepted"]
    assert upload(ci, folder).status_code == 201
    sent = AdapterVersion.objects.get().report["sent"]
    assert (sent["revision"], sent["peft_version"]) == (r"a\x00\x1b[31m\x0ab", r"0.1\x00")


def test_a_cut_header_and_a_file_that_is_none_are_told(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    raw = (folder / WEIGHTS).read_bytes()
    for header, code in ((raw[:40], "header_cut"), (b"PK\x03\x04" + raw[:40], "no_safetensors")):
        files = {
            "adapter_config": SimpleUploadedFile("c", (folder / "adapter_config.json").read_bytes()),
            "header": SimpleUploadedFile("h", header),
        }
        answer = api_client(ci).post(f"{PLACE}check/", {**files, "size": str(len(raw))}, format="multipart")
        assert [finding["code"] for finding in answer.json()["findings"]] == [code], answer.json()


def test_another_base_model_is_accepted_on_a_persons_word(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path="acme/our-copy")
    problem(upload(ci, folder), 422, "bad_adapter")
    assert upload(ci, folder, confirm_base="It is the same checkpoint.").status_code == 201
    event = AuditEvent.objects.filter(tag=Tag.VERSION_PUBLISHED).get()
    assert event.reason == "It is the same checkpoint."
    (finding,) = AdapterVersion.objects.get().report["findings"]
    assert finding["code"] == "base_confirmed"


def test_the_same_weights_under_another_slug_are_the_same_base(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    digest = adapter.base_model.digest
    BaseModel.objects.create(slug="twin", source="acme/our-copy", digest=digest)
    folder = write_adapter(tmp_path / "a", base_model_name_or_path="acme/our-copy")
    assert check(ci, folder).json()["accepted"]


def test_a_declared_name_is_the_base_models(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path="acme/our-copy")
    body = {"also_named": ["acme/our-copy"], "reason": "the same weights, on our own hub"}
    changed = api_client(ci).patch("/api/v1/base-models/tiny/", body, format="json")
    assert (changed.status_code, changed.json()["also_named"]) == (200, ["acme/our-copy"])
    assert check(ci, folder).json()["accepted"]
    event = AuditEvent.objects.get(tag=Tag.BASE_MODEL_CHANGED)
    assert (event.reason, event.after) == (body["reason"], {"also_named": ["acme/our-copy"]})


def test_renamed_tensors_are_a_recorded_conversion(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    before = load_file(folder / WEIGHTS)
    renamed = {name.replace(".weight", ".default.weight"): tensor for name, tensor in before.items()}
    save_file(renamed, folder / WEIGHTS)
    assert upload(ci, folder, conversions="by hand", source_sha256="a" * 64).status_code == 201
    version = AdapterVersion.objects.get()
    after = load_file(version.stored(tmp_path / "out") / WEIGHTS)
    assert {name: tensor.tolist() for name, tensor in after.items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert version.report["conversions"] == [f"{len(before)} tensors were renamed."]
    assert version.lineage == {"source_sha256": "a" * 64, "conversions": ["by hand"]}


def with_base_weights(base: BaseModel, size: float) -> None:
    weights = {
        f"{module_name(layer, kind)}.weight": np.full(shape, size, np.float32)
        for layer in range(LAYERS)
        for kind, shape in SHAPES.items()
    }
    save_file(weights, base.folder / "model.safetensors")
    base.inspect()


def test_updates_are_measured_against_their_base_weights(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    with_base_weights(adapter.base_model, 2.0)
    folder = write_adapter(tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    name = module_name(0, "q_proj")
    tensors[f"base_model.model.{name}.lora_B.weight"][2:] = 0
    save_file(tensors, folder / WEIGHTS)
    assert upload(ci, folder).status_code == 201
    version = AdapterVersion.objects.get()
    verification.check(version)
    update = 2 * tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]
    measured = version.report["updates"][name]
    assert measured["share"] == pytest.approx(np.linalg.norm(update) / np.linalg.norm(np.full((16, 16), 2.0)))
    assert (measured["zero_rows"], measured["rows"]) == (14, 16)
    assert [finding["code"] for finding in version.report["measured"]] == ["zero_rows"]


@pytest.mark.parametrize(("factor", "status"), [(1e-9, VersionStatus.REJECTED), (1e-6, VersionStatus.READY)])
def test_an_update_that_no_number_shows_is_no_effect(
    ci: str, adapter: Adapter, tmp_path: Path, factor: float, status: str
) -> None:
    with_base_weights(adapter.base_model, 2.0)
    folder = write_adapter(tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t * np.float32(factor) if ".lora_B." in n else t for n, t in tensors.items()}, folder / WEIGHTS)
    assert upload(ci, folder).status_code == 201
    version = AdapterVersion.objects.get()
    verification.check(version)
    expected = "no_effect" if status == VersionStatus.REJECTED else "negligible"
    assert (version.status, version.report["measured"][0]["code"]) == (status, expected)


def test_a_rank_above_every_cluster_is_told(ci: str, adapter: Adapter, cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.max_lora_rank < 512
    folder = write_adapter(tmp_path / "a", rank=512)
    findings = {finding["code"]: finding["level"] for finding in check(ci, folder).json()["findings"]}
    assert findings == {"base_unnamed": "notice", "rank_over_clusters": "notice"}


def test_the_report_is_on_the_versions_page(
    ci: str, adapter: Adapter, alice: User, tmp_path: Path, client: Any
) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path="unsloth/tiny-bnb-4bit")
    assert upload(ci, folder).status_code == 201
    verification.check(AdapterVersion.objects.get())
    client.force_login(alice)
    page = client.get("/adapters/dora/v1/").content.decode()
    assert "unsloth/tiny-bnb-4bit" in page
    assert "with fewer bits" in page
