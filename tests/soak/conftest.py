"""How long a soak lasts: a twentieth in the ordinary test run, the whole with --soak."""

from __future__ import annotations

import pytest

from tests.byte_llama_base import base_model, model_folder

__all__ = ["base_model", "model_folder"]

FULL_S = 600.0


@pytest.fixture
def soak_s(request: pytest.FixtureRequest) -> float:
    return FULL_S if request.config.getoption("--soak") else FULL_S / 20
