"""Base models of the registry."""

from __future__ import annotations

import shutil
from pathlib import Path

from registry.models import BaseModel


def registered_base_model(folder: Path) -> BaseModel:
    """Register a copy of the model in `folder` as the base model `tiny`."""
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    shutil.copytree(folder, model.folder)
    model.inspect()
    return model
