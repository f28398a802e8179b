"""The command line that starts a run: one process, or one per device under torch's launcher.

It imports no torch, so that workers can import it.
"""

from __future__ import annotations


def command(recipe: str, run_json: str, devices: int = 1) -> list[str]:
    """Return the arguments after `python -m` that start the recipe on the run file with this number of devices.

    `recipe` is a module's name, such as `training.recipes.lora`, `run_json` the run file's path. Several devices use
    torch's launcher. `accelerate launch` would start processes in the same way, but refuses to on CPUs; in the recipe
    accelerate reads the rank from the environment either way.
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
