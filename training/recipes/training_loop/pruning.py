"""AdaLoRA's rank allocation after each optimiser step, which Trainer does not call; it resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from training.recipes.run_file import Run

STATE = "allocation.pt"


class Pruning(TrainerCallback):
    """Callback that drives PEFT's rank allocator for AdaLoRA, step by step.

    The configuration's own rank_pattern stays empty: PEFT would cut a checkpoint's tensors by it, and a value that is
    pruned now may return later.
    """

    def __init__(self, run: Run) -> None:
        self.checkpoints = run.output / "checkpoints"
        self.pattern: dict[str, list[bool]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Restore the allocator's state from the checkpoint of the current step; no effect if there is none."""
        path = self.checkpoints / f"checkpoint-{state.global_step}" / STATE
        if path.is_file():
            state_dict = torch.load(path, weights_only=True)
            self.pattern, allocator = state_dict["pattern"], model.base_model.rankallocator
            allocator.exp_avg_ipt, allocator.exp_avg_unc = state_dict["sensitivity"], state_dict["uncertainty"]
            allocator.ipt = dict(state_dict["sensitivity"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Have the allocator assign the ranks again up to the last pruning step.

        After it, the singular values that the last assignment pruned are set to 0 again.
        """
        step, adapted = state.global_step + 1, model.base_model
        last = adapted.rankallocator.peft_config.total_step - adapted.rankallocator.peft_config.tfinal
        if step <= last:
            # At the last step the allocator no longer updates its scores; it prunes by those that it has.
            pattern = adapted.rankallocator.update_and_allocate(adapted.model, step, force_mask=step == last)[1]
            self.pattern = pattern or self.pattern
        elif self.pattern:
            adapted.rankallocator.mask_using_rank_pattern(adapted.model, self.pattern)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Save the allocator's state in the checkpoint's folder; the first process alone does."""
        if state.is_world_process_zero:
            allocator = model.base_model.rankallocator
            state_dict = {
                "pattern": self.pattern,
                "sensitivity": allocator.exp_avg_ipt,
                "uncertainty": allocator.exp_avg_unc,
            }
            torch.save(state_dict, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)
