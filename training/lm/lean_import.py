"""A faster start for programs that do not quantise anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def leave_out_bitsandbytes(base_model: Path) -> None:
    """Make bitsandbytes look absent in this process, unless the base model's configuration asks for a quantised model.

    PEFT imports it wherever it is installed, which takes a third of the CPU time of importing PEFT; only 4-bit and
    8-bit layers use it. Call it before anything imports PEFT.
    """
    configuration = base_model / "config.json"
    if configuration.is_file() and not json.loads(configuration.read_text()).get("quantization_config"):
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
