"""LoRA training of a causal language model's linear modules: `python -m training.recipes.lora RUN_JSON`.

Reads the run file (run_file.Run), trains with TRL's SFTTrainer, and writes OUTPUT/adapter and OUTPUT/result.json.
The same file again goes on from the last complete checkpoint. SIGTERM: a checkpoint, then exit status 143.
Ranks are uniform or a plan's; `init` may be `eva` (PEFT's) or a file of start values for A, which TARS writes.
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
    """Train the run with LoRA. Raises BadInput."""
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.autocast_fix import WithoutCasts

    trainer.train(run, events, cancel, trainer.Method("lora", keep, adapt=adapt, callbacks=[WithoutCasts()]))


def adapt(model: Any, run: Run, material: Any) -> tuple[Any, Any]:
    """Return (model, PEFT's configuration), or, for start values, (the wrapped model with these, None)."""
    from training.recipes.training_loop.start_values import started

    return started(model, lora_config(run), run, material)


def keep(trained: Trained, run: Run) -> dict[str, Any]:
    """Write OUTPUT/adapter, and return the number of its parameters as facts."""
    from training.recipes.output.adapter_output import save_adapter, trainable

    save_adapter(trained.model, run, trained.weights)
    return {"parameters": trainable(trained.model)}


def lora_config(run: Run, **changes: Any) -> Any:
    """Return PEFT's configuration with the run's ranks and the `changes`."""
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
