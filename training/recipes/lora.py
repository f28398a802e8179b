"""LoRA training of a causal language model's linear modules: `python -m training.recipes.lora RUN_JSON`.

Reads the run file (run_file.Run), trains with TRL's SFTTrainer, and writes OUTPUT/adapter and OUTPUT/result.json. Run
on the same file again, it continues from the last complete checkpoint. On SIGTERM it saves a checkpoint and exits with
status 143. Ranks are uniform or from a plan; `init` is `random`, `eva` (PEFT's) or a file of start values for A, such
as TARS writes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.run_file import Run

if TYPE_CHECKING:
    from training.recipes.training_loop.trainer import Trained


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, lambda run, events, cancel: train(run, events, cancel))


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with LoRA and write its output. Raises BadInput and Diverged."""
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.autocast_fix import WithoutCasts

    trainer.train(run, events, cancel, trainer.Method("lora", keep, adapt=adapt, callbacks=[WithoutCasts()]))


def adapt(model: Any, run: Run, material: Any) -> tuple[Any, Any]:
    """Return the model and PEFT's configuration for the run.

    With start values the model is wrapped by PEFT already, and the configuration is None. Raises BadInput for a file of
    start values that does not fit.
    """
    from training.recipes.training_loop.start_values import started

    return started(model, lora_config(run), run, material)


def keep(trained: Trained, run: Run) -> dict[str, Any]:
    """Write OUTPUT/adapter; return {"parameters": number of trained parameters} for the result."""
    from training.recipes.output.adapter_output import save_adapter, trainable

    save_adapter(trained.model, run, trained.weights)
    return {"parameters": trainable(trained.model)}


def lora_config(run: Run, **changes: Any) -> Any:
    """Return PEFT's LoraConfig with the run's ranks, and `changes` as further arguments."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=run.r,
        lora_alpha=run.lora_alpha,  # type: ignore[arg-type]  # a scale need not be whole
        rank_pattern=dict(run.rank_pattern),
        alpha_pattern=dict(run.alpha_pattern),
        target_modules=run.target_modules,
        lora_dropout=run.hyperparameters.lora_dropout,
        **changes,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
