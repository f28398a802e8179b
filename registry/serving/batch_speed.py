"""Speed of batches of many adapters on a release of vLLM, with and without the wheel adapterhub-vllm. Pure.

The figures are those of docs/benchmarks.md, "Many adapters in one batch of vLLM".
"""

from __future__ import annotations

from serving_client.vllm_plugin.releases import CHECKED, MEASURED, series

# Decode speed of 32 requests that name 32 adapters, as a share of the base model's: 8B, rank 16, one H200.
WITH_PLUGIN, WITHOUT_PLUGIN = 0.84, 0.27


def batch_speed(engine_version: str) -> str:
    """Return a sentence for operators on how fast batches of many adapters are decoded on a release of vLLM.

    `engine_version` is as the engine reports it (`0.24.1`); "" (not known) gives "". For a release that was not
    measured, or that the wheel adapterhub-vllm does not know, the sentence says so.
    """
    if not engine_version:
        return ""
    release = series(engine_version)
    if release in MEASURED:
        return (
            f"On vLLM {release}, 32 requests that name 32 adapters decode at {WITH_PLUGIN} of the base model's speed "
            f"with the wheel adapterhub-vllm and at {WITHOUT_PLUGIN} without it (8B, rank 16, one H200). Slots take "
            "the same memory with and without it."
        )
    if release in CHECKED:
        return (
            f"On vLLM {release} the wheel adapterhub-vllm stays off unless it is turned on: its speed is not measured."
        )
    return f"The wheel adapterhub-vllm does not know vLLM {engine_version} and stays off there."
