"""DoRA: direction from a LoRA, magnitude from a vector (arXiv 2402.09353): `python -m training.recipes.dora RUN_JSON`.

No engine serves DoRA, so the nearest LoRA of the chosen rank is published, with its reconstruction error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.lora import lora_config
from training.recipes.run_file import Run

if TYPE_CHECKING:
    from torch import Tensor


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, train)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with DoRA and write its output, converted to the nearest plain LoRA.

    Raises BadInput and Diverged.
    """
    from training.recipes.output.adapter_output import trainable
    from training.recipes.output.low_rank import nearest, save_factors
    from training.recipes.output.served_loss import loss_as_served
    from training.recipes.training_loop import trainer

    def adapt(model: Any, run: Run, material: Any) -> tuple[Any, Any]:
        return model, lora_config(run, use_dora=True)

    def keep(trained: trainer.Trained, run: Run) -> trainer.Facts:
        factors, error = nearest(changes(trained.model, trained.weights), run)
        parameters = save_factors(factors, run)
        return {
            "parameters": parameters,
            "trained_parameters": trainable(trained.model),
            "reconstruction_error": error,
            "loss_served": loss_as_served(trained, run),
        }

    trainer.train(run, events, cancel, trainer.Method("dora", keep, adapt=adapt))


def changes(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return by module name the change that DoRA makes to the module's weight, (out, in) in float32.

    It is m (W + s B A) / norm(W + s B A) - W, with the norm over each output's row. W is the base's weight and s is
    alpha / r; A, B and the magnitude m are taken from `weights`, the trained weights by parameter name.
    """
    change_of = {}
    for name, layer in model.named_modules():
        if getattr(layer, "lora_magnitude_vector", None):
            prefix = f"{name}.lora_"
            a, b = weights[f"{prefix}A.default.weight"], weights[f"{prefix}B.default.weight"]
            magnitude = weights[f"{prefix}magnitude_vector.default.weight"]
            old = layer.base_layer.weight.data.float()
            new = old + layer.scaling["default"] * (b.float() @ a.float())
            new *= (magnitude.float() / new.norm(dim=1))[:, None]
            change_of[name.removeprefix("base_model.model.")] = new - old
    return change_of


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
