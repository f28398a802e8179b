"""A few steps of a run, measured: `python -m training.recipes.dry_run RUN_JSON METHOD [--steps 3]`; prints JSON.

Seconds a step without the first one, peak memory, and the device's power where nvidia-smi tells it; from these the time
and the energy of all steps. It works in a folder of its own: nothing of the run is touched.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from training.lm.error_reporting import BadInput
from training.recipes import launch_command
from training.recipes.run_file import read_record

POLL_S = 0.02
METHODS = ("lora", "qlora", "dora", "adalora", "galore", "full", "dpo", "kto", "orpo")
Record = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run a few steps of a run, at least two, and print as JSON what all of its steps would take.

    Return 0, or 2 with a message for bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m training.recipes.dry_run", description=__doc__)
    parser.add_argument("run_json", type=Path)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args(arguments)
    try:
        answer = dry_run(read_record(chosen.run_json), chosen.method, max(2, chosen.steps))
    except BadInput as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def dry_run(record: Record, method: str, steps: int) -> Record:
    """Run the recipe for `steps` steps in a child process; return what the run's own steps would take.

    `record` is the run file's content, whose `steps` (40 without one) are taken, even if it sets `epochs`; `method` is
    one of METHODS. The result is that of `Watch.answer`. Raises BadInput with the recipe's error if it ends before its
    second step.
    """
    with tempfile.TemporaryDirectory(prefix="dry-run-") as name:
        folder = Path(name)
        path = folder / "run.json"
        path.write_text(json.dumps(shortened(record, steps, folder)))
        command = launch_command.command(f"training.recipes.{method}", str(path), record.get("devices", 1))
        watch = Watch(folder / "events.jsonl")
        with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL) as child:  # noqa: S603
            watch.follow(child)
    return watch.answer(int((record.get("hyperparameters") or {}).get("steps", 40)))


def shortened(record: Record, steps: int, folder: Path) -> Record:
    """Return the run file's record with fewer steps, no evaluation, no checkpoint, and its output in `folder`."""
    chosen = {
        **(record.get("hyperparameters") or {}),
        "steps": steps,
        "checkpoint_steps": 1_000_000,
        "epochs": 0,
        "eval_steps": 0,
    }
    own = {"output": str(folder / "output"), "events": str(folder / "events.jsonl"), "eval": None}
    mixture = [{**part, "eval": None} for part in record.get("mixture") or []]
    return {**record, **own, "mixture": mixture, "hyperparameters": chosen}


@dataclass
class Watch:
    """The events that a child process has reported, when each was seen, and the GPU's power during its steps.

    `watts` holds the measured power in W.
    """

    events: Path
    events_seen: list[tuple[float, Record]] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def follow(self, child: subprocess.Popen[bytes]) -> None:
        """Collect events, and the power during the steps, until the child has ended."""
        while child.poll() is None:
            self.read_events()
            if self.steps and (power := power_now()) is not None:
                self.watts.append(power)
            time.sleep(POLL_S)
        self.read_events()

    def read_events(self) -> None:
        """Add the events that the child has written since the last call, with the present time."""
        lines = self.events.read_text().splitlines(keepends=True) if self.events.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        self.events_seen += [(time.monotonic(), event) for event in whole[len(self.events_seen) :]]

    @property
    def steps(self) -> list[tuple[float, Record]]:
        """Return (time, metrics event) of each step that was seen."""
        return [(at, event) for at, event in self.events_seen if event["kind"] == "metrics"]

    def answer(self, planned: int) -> Record:
        """Return {steps, seconds_a_step, memory_bytes, seconds, watts, joules}.

        `steps` is the number of steps that were seen; `seconds` and `joules` are what `planned` steps would take. Watts
        and joules are None if the power is not known. Raises BadInput, with the child's last error, if fewer than two
        steps were seen.
        """
        steps = self.steps
        if len(steps) < 2:
            errors = [str(event["message"]) for _, event in self.events_seen if event["kind"] == "error"]
            raise BadInput(errors[-1] if errors else "The recipe ended before its second step; see its log above.")
        each = (steps[-1][0] - steps[0][0]) / (len(steps) - 1)
        power = mean(self.watts) if self.watts else None
        return {
            "steps": len(steps),
            "seconds_a_step": round(each, 4),
            "memory_bytes": steps[-1][1]["memory_bytes"],
            "seconds": round(each * planned, 1),
            "watts": power,
            "joules": None if power is None else round(power * each * planned, 1),
        }


def power_now() -> float | None:
    """Return the present power of all GPUs together in watts.

    None if there is no nvidia-smi, or it does not report the power of each GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return summed(answer.stdout)


def summed(text: str) -> float | None:
    """Return the sum of the numbers in the text; None if there is none, or a word is not a number."""
    try:
        return sum(float(line) for line in text.split()) if text.strip() else None
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
