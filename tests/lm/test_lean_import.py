"""bitsandbytes stays out of programs that quantise nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from training.lm.lean_import import leave_out_bitsandbytes


@pytest.mark.parametrize(
    ("configuration", "is_there"),
    [({}, False), ({"quantization_config": {"load_in_4bit": True}}, True), (None, True)],
    ids=["16 bits", "4 bits", "on a hub"],
)
def test_only_a_quantised_base_model_keeps_bitsandbytes(
    configuration: dict[str, Any] | None, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    if configuration is not None:
        (tmp_path / "config.json").write_text(json.dumps(configuration))
    leave_out_bitsandbytes(tmp_path)
    assert (find_spec("bitsandbytes") is not None) is is_there


@pytest.mark.slow
def test_peft_works_without_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys; from pathlib import Path; from training.lm.lean_import import leave_out_bitsandbytes\n"
        "leave_out_bitsandbytes(Path(sys.argv[1])); import peft\n"
        "print([name for name in sys.modules if name.startswith('bitsandbytes.')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
