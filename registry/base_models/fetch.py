"""Fetch a base model's files into the models folder.

The source is a folder that is already there, a snapshot from a hub, or a version's whole checkpoint.
"""

from __future__ import annotations

import shutil

from django.conf import settings
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from adapterhub.artifacts import ArtifactError, copy_in_one_step
from adapterhub.core.errors import DomainError
from adapterhub.workspace import store
from registry.exports import zip_export as exports
from registry.models import AdapterVersion, BaseModel

FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]


def fetch_base_model(model: BaseModel) -> bool:
    """Fetch the model's files. Return True when they are in place; otherwise reject the model with the reason."""
    if model.folder.is_dir():
        return True
    if served_name := model.made_of:
        return take_whole(model, AdapterVersion.objects.get(served_name=served_name))
    if "/" not in model.source or model.source.startswith((".", "/")):
        model.reject(f"There is no folder {model.source!r} in {settings.MODELS_DIR}: put the checkpoint there.")
        return False
    return download(model)


def download(model: BaseModel) -> bool:
    """Download a hub snapshot to a temporary folder, then rename it, so that a failed download never looks complete.

    Return False and reject the model if the hub does not deliver it.
    """
    partial = model.folder.with_name(f".partial-{model.slug}")
    try:
        snapshot_download(model.source, revision=model.revision or None, local_dir=partial, allow_patterns=FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        model.reject(f"The hub did not give {model.source!r}: {error}")
        return False
    partial.rename(model.folder)
    return True


def take_whole(model: BaseModel, version: AdapterVersion) -> bool:
    """Copy the checkpoint that the version's training stored, or merge its adapter into its base model.

    Return False and reject the model if that fails.
    """
    try:
        if digest := version.metrics.get("checkpoint"):
            store().fetch_dir(digest, model.folder)
        else:
            merge(version, model)
    except (ArtifactError, DomainError, OSError) as error:
        model.reject(f"The checkpoint of {version} cannot be created: {error}")
        return False
    return True


def merge(version: AdapterVersion, model: BaseModel) -> None:
    """Merge the version's adapter into its base model, in float32 if that is the base's type, otherwise in bfloat16."""
    base = version.adapter.base_model
    named = base.config.get("dtype") or base.config.get("torch_dtype")
    dtype = exports.Dtype.FP32 if named == "float32" else exports.Dtype.BF16
    with exports.scratch_copy(version) as stored:
        merged = exports.rewrite(stored, base.folder, stored.with_name("merged"), exports.Format.MERGED, dtype)
        copy_in_one_step(merged, model.folder)
