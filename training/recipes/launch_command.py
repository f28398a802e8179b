"""Command line of a run: one process, or one a device under torch's launcher. No torch, so workers can import it."""

from __future__ import annotations


def command(recipe: str, run_json: str, devices: int = 1) -> list[str]:
    """Return the arguments after `python -m`; one device and several use the same recipe and run file.

    `accelerate launch` starts several processes by the same launcher, but refuses to on CPUs; accelerate itself works
    inside the recipe either way and reads the rank from the environment.
    """
    if devices == 1:
        return [recipe, run_json]
    return [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(devices),
        "--max-restarts",
        "0",
        "--module",
        recipe,
        run_json,
    ]
