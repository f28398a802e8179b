"""Progress events of a training, and marks that tell complete checkpoints from those that a crash left partial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from training.lm.events import Events
from training.recipes.entrypoint import Cancel
from training.recipes.peak_memory import peak_memory
from training.recipes.training_loop.best_checkpoint import HeldOutCurve
from training.recipes.training_loop.distributed import anyone
from training.recipes.training_loop.divergence import require_finite

COMPLETE = "complete"
# What TRL logs of a step, and our names of it.
LOGGED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "kl": "kl",
    "nll_loss": "nll_loss",
}


def last_complete(folder: Path) -> Path | None:
    """Return the folder of the newest checkpoint that is marked complete; None if there is none."""
    marked = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(marked, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class Reporter(TrainerCallback):
    """Callback that writes progress and metrics as events after every step and marks complete checkpoints.

    On a request to cancel it has the trainer save a checkpoint and stop. `tokens` has the number of tokens of each row
    in reading order; `curve` measures the held-out loss, None if none is measured during the training.
    """

    def __init__(
        self,
        events: Events,
        cancel: Cancel,
        tokens: Sequence[int],
        state: PartialState,
        curve: HeldOutCurve | None = None,
    ) -> None:
        self.events, self.cancel, self.state, self.curve = events, cancel, state, curve
        # tokens[n]: tokens in the first n rows, without padding
        self.tokens = [0, *accumulate(tokens)]
        self.first = self.begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the step and the time at which this attempt starts."""
        self.first, self.begun = state.global_step, time.monotonic()
        self.events.started = self.begun

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the progress as an event; if any process was asked to cancel, save a checkpoint and stop.

        The trainer does so in every process, and `cancel.requested` is then True in each.
        """
        self.events.progress(state.global_step, state.max_steps, int(self.first))
        if anyone(self.cancel.requested, self.state):
            self.cancel.requested = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write the step's metrics as an event, with the held-out loss if it was measured at this step.

        No effect for a log without a loss. Raises Diverged for a loss or a gradient norm that is not finite.
        """
        if not logs or "loss" not in logs:
            return
        known: dict[str, float] = {name: logs[trls] for trls, name in LOGGED.items() if trls in logs}
        require_finite(state.global_step, known)
        if self.curve and self.curve.latest and self.curve.latest[0] == state.global_step:
            measured = self.curve.latest[1]
            known |= {"held_out_loss": measured.loss, **{f"held_out_{name}": x for name, x in measured.rewards.items()}}
        speed, memory = self.pace(args, state), peak_memory()
        self.events.write("metrics", step=state.global_step, **known, tokens_per_second=speed, memory_bytes=memory)

    def pace(self, args: Any, state: Any) -> float:
        """Return the tokens per second trained since this attempt began, over all processes, to one decimal."""
        each: int = args.train_batch_size * args.gradient_accumulation_steps * self.state.num_processes
        done = self.tokens[state.global_step * each] - self.tokens[int(self.first) * each]
        return float(round(done / max(time.monotonic() - self.begun, 1e-9), 1))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as complete once every process has written its part."""
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
