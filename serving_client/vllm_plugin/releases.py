"""The vLLM releases that the row kernels support. Imports no torch, so that any process can ask."""

from __future__ import annotations

import re

MEASURED = ("0.24",)
"""Kernels and speed were measured on a GPU."""
CHECKED = ("0.32",)
"""Only signatures and metadata were tested, on the CPU."""
SETTING = "ADAPTERHUB_VLLM_UNMEASURED"


def refusal(version: str, *, takes_unmeasured: bool) -> str | None:
    """Return the reason, for the log, why this vLLM version must run without row kernels; None if it may run with them.

    `takes_unmeasured` permits also the series in CHECKED, of which only the interfaces were tested.
    """
    line = series(version)
    if line in MEASURED:
        return None
    if line not in CHECKED:
        known = ", ".join((*MEASURED, *CHECKED))
        return f"vLLM {version} is unknown to this plugin, which knows {known}; install one of these or a newer plugin"
    if takes_unmeasured:
        return None
    return f"vLLM {version} is not measured on a GPU, only its interfaces are tested; set {SETTING}=1 to run it so"


def series(version: str) -> str:
    """Return the series of a version, `0.24` of `0.24.1+cu130`; the whole text if it begins otherwise."""
    match = re.match(r"\d+\.\d+(?=\.)", version)
    return match[0] if match else version
