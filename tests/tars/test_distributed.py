"""Two processes share an analysis and find what one finds; the first of them speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import save_base_model, sentences, write_jsonl
from training.tars.__main__ import main

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "training.tars"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    data, reference = (write_jsonl(folder / f"{seed}.jsonl", sentences(20, seed=seed)) for seed in (1, 2))
    return [
        "--model",
        str(save_base_model(folder / "base")),
        "--data",
        str(data),
        "--reference",
        str(reference),
        "--budget",
        "uniform:4",
        "--rank-max",
        "16",
        "--quantum",
        "2",
        "--samples",
        "12",
        "--max-length",
        "32",
        "--probe-steps",
        "2",
        "--threads",
        "1",
    ]


def together(words: list[str], out: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *LAUNCHER, *words, "--out", str(out)], env=environment, check=True, timeout=240)
    plan: dict[str, Any] = json.loads(out.read_text())
    return plan


@pytest.mark.parametrize("settings", [[], ["--preset", "seed", "--sensitivity", "spectrum"]])
@pytest.mark.slow
def test_two_find_what_one_finds(words: list[str], settings: list[str], tmp_path: Path) -> None:
    assert main([*words, *settings, "--out", str(tmp_path / "alone.json")]) == 0
    alone = json.loads((tmp_path / "alone.json").read_text())
    events = tmp_path / "events.jsonl"
    plan = together([*words, *settings, "--events", str(events)], tmp_path / "together.json")
    assert plan["rank_pattern"] == alone["rank_pattern"]
    assert plan["stability"] == pytest.approx(alone["stability"], abs=1e-4)
    for one, other in zip(alone["modules"], plan["modules"], strict=True):
        assert other["score"] == pytest.approx(one["score"], rel=1e-4)
    steps = [json.loads(line)["step"] for line in events.read_text().splitlines()]
    assert steps == sorted(set(steps)), "one process reports"
