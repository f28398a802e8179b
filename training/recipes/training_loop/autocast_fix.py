"""Removal of PEFT's casts of each module's input to float32, which autocast would round to bfloat16 again at once."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class WithoutCasts(TrainerCallback):
    """Callback that switches off PEFT's casts of module inputs to float32 in training steps in bfloat16.

    Without autocast, as in evaluations, they are needed.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Switch PEFT's casts off for the step if the training computes in bfloat16."""
        if args.bf16:
            set_casts(model, False)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Switch PEFT's casts on again."""
        set_casts(model, True)


def set_casts(model: Any, are_on: bool) -> None:
    """Switch the input casts of every LoRA module of the model on or off."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = are_on
