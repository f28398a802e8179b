"""A run's metrics as an offline run of Weights & Biases, which `wandb sync` takes to a server.

Needs the package `wandb`; nothing leaves this machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def write_offline(run: dict[str, Any], steps: list[dict[str, Any]], folder: Path) -> Path:
    """Write the run with its hyper-parameters, metrics by step and result; return the folder to sync.

    `run` and `steps` are REST's answers. Raises ModuleNotFoundError without the package.
    """
    import wandb

    offline = wandb.init(
        mode="offline",
        dir=str(folder),
        project=f"{run['project']}.{run['adapter']}",
        id=run["id"],
        name=run["version"] or run["id"],
        config={**run["hyperparameters"], "method": run["method"], "dataset": run["dataset"]},
        settings=wandb.Settings(silent=True, disable_git=True, disable_code=True, x_disable_stats=True),
    )
    for step in steps:
        offline.log(step["values"], step=step["step"])
    for name in ("loss_before", "loss_after", "status"):
        offline.summary[name] = run[name]
    written = Path(offline.dir).parent
    offline.finish()
    return written


def main(arguments: list[str]) -> int:
    """Write the run and steps in a JSON file into a folder, print the folder to sync, and return 0."""
    stored = json.loads(Path(arguments[0]).read_bytes())
    sys.stdout.write(f"{write_offline(stored['run'], stored['steps'], Path(arguments[1]))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
