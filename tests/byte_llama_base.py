"""The random Llama of `tests.byte_llama` as the registry's base model `tiny`: fixtures of every test that serves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.models import BaseModel
from tests.byte_llama import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base_model(db_or_fresh: None, model_folder: Path) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    shutil.copytree(model_folder, model.folder)
    model.inspect()
    return model
