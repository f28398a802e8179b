"""A random Llama that replicas serve, and how long a soak lasts: a twentieth without --soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.models import BaseModel
from tests.builders.base_models import registered_base_model
from tests.byte_llama import save_model

FULL_S = 600.0


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base_model(db_or_fresh: None, model_folder: Path) -> BaseModel:
    return registered_base_model(model_folder)


@pytest.fixture
def soak_s(request: pytest.FixtureRequest) -> float:
    return FULL_S if request.config.getoption("--soak") else FULL_S / 20
