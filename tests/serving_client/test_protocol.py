"""Messages between the control plane and the routers: what one side writes, the other reads, across releases too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving_client.reports import MeasuredAnswer, Outcome, Sample

ROOT = Path(__file__).parents[2]
MEASURED = {"status": 200, "ttft_ms": 3.5, "total_ms": 20.0, "prompt_tokens": 5, "completion_tokens": 16}
REPORT: dict[str, Any] = {
    **MEASURED,
    "response_id": "r1",
    "at": 1.5,
    "project": "eu",
    "alias": None,
    "version": "eu.compliance.v1-000000000000",
    "arm": "none",
    "sticky": True,
    "unit": None,
}


def test_an_outcome_is_read_as_it_was_written() -> None:
    outcome = Outcome(**REPORT, refusal=True, mirrored=MeasuredAnswer(**MEASURED, empty=False))
    assert Outcome.all_from_json(orjson.dumps([outcome, outcome])) == [outcome, outcome]


def test_other_releases_are_understood() -> None:
    newer = {**REPORT, "colour": "blue", "mirrored": {**MEASURED, "colour": "blue"}}
    assert Outcome.all_from_json(json.dumps(newer)) == [Outcome(**REPORT, mirrored=MeasuredAnswer(**MEASURED))]


def test_a_report_that_lacks_a_field_names_it() -> None:
    lacking = {name: value for name, value in REPORT.items() if name != "version"}
    with pytest.raises(ValueError, match="version"):
        Outcome.all_from_json(json.dumps([lacking]))


def test_a_sample_is_read_as_it_was_written() -> None:
    sample = Sample("r1", "7", "control", "ab", 1.5, [{"role": "user", "content": "Why?"}], "Because.")
    assert Sample.from_json(sample.to_json()) == sample


def test_one_module_names_the_keys_in_valkey() -> None:
    packages = ("adapterhub", "registry", "training", "serving_client")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    naming = [path.relative_to(ROOT) for path in sources if re.search(r"[\"']ah:", path.read_text())]
    assert naming == [Path("serving_client/protocol.py")]
