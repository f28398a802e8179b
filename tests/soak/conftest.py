"""How long a soak lasts: a twentieth in the ordinary test run, the whole with --soak."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.models import BaseModel
from tests.byte_llama import save_model

FULL_S = 600.0


@pytest.fixture
def soak_s(request: pytest.FixtureRequest) -> float:
    return FULL_S if request.config.getoption("--soak") else FULL_S / 20


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base_model(db_or_fresh: None, model_folder: Path) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    shutil.copytree(model_folder, model.folder)
    model.inspect()
    return model
