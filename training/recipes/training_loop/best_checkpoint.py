"""The held-out loss during a training: its curve, the best weights so far, and early stopping."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from training.lm.evaluation import HeldOutLoss
from training.lm.events import Events
from training.recipes.run_file import Hyperparameters, write_atomically
from training.recipes.training_loop.distributed import anyone, of_main_process, set_weights, whole_weights

FACTS = "best.json"


class HeldOutCurve(TrainerCallback):
    """Callback that measures the held-out loss every `eval_steps`, saves the best weights, and stops after `patience`.

    `patience` counts measurements without a better loss; 0 never stops. The count and the weights are stored in the
    output folder: a resumed run does not count again a step that was measured. `measure(model)` returns the loss, None
    without held-out rows. `latest` is the last (step, loss); a measurement before the step `begin` has no other effect.
    """

    def __init__(
        self,
        chosen: Hyperparameters,
        folder: Path,
        measure: Callable[[Any], HeldOutLoss | None],
        events: Events,
        state: PartialState,
        begin: int = 0,
    ) -> None:
        self.chosen, self.folder, self.measure, self.events, self.state = chosen, folder, measure, events, state
        self.begin = begin
        self.latest: tuple[int, HeldOutLoss] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure the loss at every `eval_steps` and at the last step, and save the weights if they are the best.

        The training is stopped after `patience` measurements without a better loss. No effect without held-out rows;
        before the step `begin` the loss is only measured.
        """
        if state.global_step % self.chosen.eval_steps and state.global_step < state.max_steps:
            return
        measured = self.measure(model)
        if measured is None:
            return
        self.latest = state.global_step, measured
        if state.global_step < self.begin:
            return
        facts = self.judged(state.global_step, measured.loss, model)
        if self.chosen.patience and anyone(facts["worse_since"] >= self.chosen.patience, self.state):
            self.events.write("log", message=f"Stopped at step {state.global_step}: no better since {facts['step']}.")
            control.should_training_stop = True

    def judged(self, step: int, loss: float, model: Any) -> dict[str, Any]:
        """Save the weights if the loss is the best so far; return {loss, step, worse_since, measured}.

        `loss` and `step` are those of the best measurement, `worse_since` counts the measurements after it, and
        `measured` is the last step that was measured. This record is stored, and the weights of other steps are
        deleted. The first process's loss decides; every process must call it. A step that was measured before changes
        nothing.
        """
        facts = best_of(self.folder)
        if facts and facts["measured"] >= step:
            return facts
        loss = of_main_process(loss, self.state)
        if facts is None or loss < facts["loss"]:
            facts = {"loss": loss, "step": step, "worse_since": 0, "measured": step}
            weights = whole_weights(getattr(model, "module", model))
            if self.state.is_main_process:
                save_file(
                    {name: weight.cpu().clone() for name, weight in weights.items()}, weights_file(self.folder, step)
                )
        else:
            facts = {**facts, "worse_since": facts["worse_since"] + 1, "measured": step}
        # Another process must not read the next facts while it still has to judge by these.
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_atomically(self.folder / FACTS, facts)
            drop_others(self.folder, facts["step"])
        self.state.wait_for_everyone()
        return facts


def weights_file(folder: Path, step: int) -> Path:
    """Return the path of the weights saved at a step.

    `best.json` names the step, so that a partial file is never read.
    """
    return folder / f"best-{step}.safetensors"


def drop_others(folder: Path, step: int) -> None:
    """Delete the saved weights of all steps but this one."""
    for path in folder.glob("best-*.safetensors"):
        if path != weights_file(folder, step):
            path.unlink()


def best_of(folder: Path) -> dict[str, Any] | None:
    """Return the run's record {loss, step, worse_since, measured}, as `HeldOutCurve.judged` stored it.

    None before the first measurement.
    """
    path = folder / FACTS
    return json.loads(path.read_bytes()) if path.is_file() else None


def restore_best(model: Any, folder: Path) -> int | None:
    """Load the best weights into the model and return their step; None, without effect, if none were saved."""
    facts = best_of(folder)
    if facts is None:
        return None
    set_weights(model, load_file(weights_file(folder, facts["step"])))
    return int(facts["step"])
