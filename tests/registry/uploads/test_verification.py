"""A foreign adapter: checked in a child before it is ready, rewritten from typed fields, signed, and foldable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.core.management import call_command
from django.db import DatabaseError, transaction
from safetensors.numpy import load_file, save_file

from adapterhub.accounts.models import User
from adapterhub.artifacts import ArtifactError
from adapterhub.audit.installation_key import public_key_pem
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from registry import tasks
from registry.adapter_files.finite_check import BLOCK_BYTES, fault_in
from registry.exports import zip_export as exports
from registry.models import Adapter, AdapterVersion, VersionStatus
from registry.uploads import verification
from tests.builders import LAYERS, SHAPES, module_name, write_adapter
from tests.builders.rest import client, problem, upload_adapter

WEIGHTS = "adapter_model.safetensors"
LAST = f"base_model.model.{module_name(LAYERS - 1, 'v_proj')}.lora_B.weight"


def broken(folder: Path, value: float, dtype: type = np.float32) -> Path:
    """An adapter with one bad number, the last of its last tensor."""
    tensors = {name: tensor.astype(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    tensors[LAST][-1, -1] = value
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_bad_number_is_found(tmp_path: Path, value: float, dtype: type) -> None:
    assert LAST in fault_in(broken(write_adapter(tmp_path), value, dtype) / WEIGHTS)


def test_bfloat16_is_read_too(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    name = f"base_model.model.{module_name(0, 'q_proj')}.lora_B.weight"
    for value, fault in (
        (1.0, ""),
        (float("nan"), name),
        (float("inf"), name),
        (0.0, "In every module A or B is zero"),
    ):
        save_torch({name: torch.full((16, 4), value, dtype=torch.bfloat16)}, tmp_path / WEIGHTS)
        assert fault_in(tmp_path / WEIGHTS).startswith(fault)


@pytest.mark.threat("E7")
def test_a_bad_number_in_a_later_block_is_found(tmp_path: Path) -> None:
    tensor = np.ones((1, BLOCK_BYTES // 4 * 2 + 3), np.float32)
    save_file({"x.lora_B.weight": tensor}, tmp_path / WEIGHTS)
    assert fault_in(tmp_path / WEIGHTS) == ""
    tensor[0, -1] = np.nan
    save_file({"x.lora_B.weight": tensor}, tmp_path / WEIGHTS)
    assert "NaN" in fault_in(tmp_path / WEIGHTS)


def test_a_trained_adapter_with_bad_numbers_is_refused_at_once(adapter: Adapter, alice: User, tmp_path: Path) -> None:
    folder = broken(write_adapter(tmp_path / "a"), float("nan"))
    with pytest.raises(Invalid, match="NaN"):
        AdapterVersion.publish(adapter, folder, method="lora", by=alice.as_actor())
    assert not AdapterVersion.objects.exists()


def uploaded(api_token: str, adapter: Adapter, folder: Path) -> AdapterVersion:
    answer = upload_adapter(client(api_token), adapter, folder)
    assert (answer.status_code, answer.json()["status"]) == (201, "checking"), answer.json()
    return AdapterVersion.objects.get(number=answer.json()["number"])


def test_an_upload_is_ready_after_its_check(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    version = uploaded(ci, adapter, write_adapter(tmp_path / "a"))
    with pytest.raises(ArtifactError, match="no signature"):
        version.fetch(tmp_path / "out")
    tasks.check_version(version.pk)
    tasks.check_version(version.pk)
    version.refresh_from_db()
    assert version.status == VersionStatus.READY
    assert version.fetch(tmp_path / "out").is_dir()
    assert AuditEvent.objects.filter(tag=Tag.VERSION_CHECKED).count() == 1


@pytest.mark.threat("E7")
def test_an_upload_with_bad_numbers_is_rejected(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    version = uploaded(ci, adapter, broken(write_adapter(tmp_path / "a"), float("inf")))
    verification.check(version)
    assert (version.status, LAST in version.message, version.signature) == (VersionStatus.REJECTED, True, "")
    assert AuditEvent.objects.filter(tag=Tag.VERSION_REJECTED).get().reason == version.message
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.filter(pk=version.pk).update(status=VersionStatus.READY)


@pytest.mark.threat("E7")
def test_a_scan_that_is_stopped_takes_nothing(
    ci: str, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "CHECK_S", 0)
    version = uploaded(ci, adapter, write_adapter(tmp_path / "a"))
    verification.check(version)
    assert (version.status, "limits" in version.message) == (VersionStatus.REJECTED, True)


@pytest.mark.threat("E4")
def test_replicas_read_our_configuration_and_not_the_senders(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", peft_version="0.21.2", revision="../..")
    version = uploaded(ci, adapter, folder)
    verification.check(version)
    text = (version.fetch(tmp_path / "out") / "adapter_config.json").read_text()
    assert text == json.dumps(version.config, indent=2, sort_keys=True) + "\n"
    assert not {"peft_version", "revision"} & set(version.config)
    assert version.config["base_model_name_or_path"] == "tiny"


@pytest.mark.threat("E4")
@pytest.mark.parametrize("name", ["meta/other", "/etc/passwd", "../../secret", "https://evil/x"])
def test_another_base_model_is_refused_by_name(ci: str, adapter: Adapter, tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=name)
    body = problem(upload_adapter(client(ci), adapter, folder), 422, "bad_adapter")
    assert body["errors"][0]["field"] == "adapter_config.json.base_model_name_or_path"


def updates(folder: Path) -> dict[str, Any]:
    """scale * B @ A of each module, as the configuration says."""
    from registry.adapter_files.manifest import scale_of

    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / "adapter_config.json").read_text())
    update_of = {}
    for module in (module_name(layer, kind) for layer in range(LAYERS) for kind in SHAPES):
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        update_of[module] = scale_of(config, module, a.shape[0]) * (b @ a)
    return update_of


@pytest.mark.slow
def test_unequal_scales_are_named_and_can_be_folded(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", alpha_pattern={"q_proj": 32, "up_proj": 1})
    before = updates(folder)
    refused = problem(upload_adapter(client(ci), adapter, folder), 422, "bad_adapter")
    assert "fold=true" in refused["detail"]
    with (folder / WEIGHTS).open("rb") as weights, (folder / "adapter_config.json").open("rb") as config:
        files = {"adapter_model": weights, "adapter_config": config, "fold": "true"}
        answer = client(ci).post("/api/v1/adapters/dora/versions/", files, format="multipart")
    assert answer.status_code == 201, answer.json()
    version = AdapterVersion.objects.get()
    verification.check(version)
    after = updates(version.fetch(tmp_path / "out"))
    for module, update in before.items():
        np.testing.assert_allclose(after[module], update, rtol=1e-5, atol=1e-6)


def test_a_pickle_is_not_opened_to_fold_it(adapter: Adapter, tmp_path: Path) -> None:
    folder, canary = write_adapter(tmp_path / "a"), tmp_path / "canary"
    (folder / WEIGHTS).write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode() * 9)
    with pytest.raises(Invalid):
        exports.folded(adapter, folder)
    assert not canary.exists()


@pytest.mark.threat("E9")
def test_a_signature_is_of_one_version(version: AdapterVersion, candidate: AdapterVersion, tmp_path: Path) -> None:
    version.signature = candidate.signature
    with pytest.raises(ArtifactError, match="other content"):
        version.fetch(tmp_path / "out")
    version.signature = "{}"
    with pytest.raises(ArtifactError, match="cannot be read"):
        version.fetch(tmp_path / "out")


def test_a_signature_is_written_once(version: AdapterVersion) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.update(signature="{}")


def test_a_foreign_key_signs_nothing_and_a_former_one_stays_good(
    version: AdapterVersion, tmp_path: Path, settings: Any
) -> None:
    former = public_key_pem().decode()
    key = Ed25519PrivateKey.generate()
    settings.AUDIT_KEY = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(ArtifactError, match="does not trust"):
        version.fetch(tmp_path / "out")
    settings.FORMER_KEYS = former
    assert version.fetch(tmp_path / "out").is_dir()


def test_versions_from_before_signatures_are_signed_by_a_command(
    adapter: Adapter, make_version: Callable[..., AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry.models import adapter as module

    monkeypatch.setattr(module, "sign", lambda content, key: "")
    old = make_version(adapter, seed=5)
    monkeypatch.undo()
    assert old.signature == ""
    call_command("sign_versions")
    old.refresh_from_db()
    assert "signature" in old.signature
