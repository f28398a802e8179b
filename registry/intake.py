"""Bring a base model's files into the models folder: a folder that lies there, or a snapshot from a hub."""

from __future__ import annotations

import shutil

from django.conf import settings
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from registry.models import BaseModel

FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]


def fetch_base_model(model: BaseModel) -> bool:
    """True when the files are in place; otherwise the model is rejected with the reason."""
    if model.folder.is_dir():
        return True
    if "/" not in model.source or model.source.startswith((".", "/")):
        model.reject(f"There is no folder {model.source!r} in {settings.MODELS_DIR}: put the checkpoint there.")
        return False
    return download(model)


def download(model: BaseModel) -> bool:
    """Fetch a hub snapshot beside its place, then rename it: a broken download leaves nothing that looks whole."""
    partial = model.folder.with_name(f".partial-{model.slug}")
    try:
        snapshot_download(model.source, revision=model.revision or None, local_dir=partial, allow_patterns=FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        model.reject(f"The hub did not give {model.source!r}: {error}")
        return False
    partial.rename(model.folder)
    return True
