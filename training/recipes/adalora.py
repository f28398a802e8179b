"""AdaLoRA, which determines ranks during training (arXiv 2303.10512): `python -m training.recipes.adalora RUN_JSON`.

It starts with half as many singular values again as the run's ranks, and ends with the mean rank of the run. The
published adapter is the same function as a plain LoRA with a rank for each module.
"""

from __future__ import annotations

import sys
from typing import Any

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.run_file import Run


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, train)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with AdaLoRA and write its output, converted to a plain LoRA. Raises BadInput and Diverged."""
    from training.recipes.output.adapter_output import trainable
    from training.recipes.output.low_rank import save_factors
    from training.recipes.output.served_loss import loss_as_served
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.pruning import Pruning

    def adapt(model: Any, run: Run, material: Any) -> tuple[Any, Any]:
        return model, adalora_config(run)

    def keep(trained: trainer.Trained, run: Run) -> trainer.Facts:
        parameters = save_factors(plain_lora(trained.model, trained.weights), run)
        return {
            "parameters": parameters,
            "trained_parameters": trainable(trained.model),
            "loss_served": loss_as_served(trained, run),
        }

    method = trainer.Method("adalora", keep, adapt=adapt, callbacks=[Pruning(run)], settled=pruned_at)
    trainer.train(run, events, cancel, method)


def pruned_at(run: Run) -> int:
    """Return the step after which nothing more is pruned; before it the ranks of the output would be too high."""
    config = adalora_config(run)
    return int(config.total_step - config.tfinal)


def adalora_config(run: Run) -> Any:
    """Return PEFT's configuration of AdaLoRA for the run.

    It prunes from a tenth of the steps until half of them, and then trains on with the ranks that are left.
    """
    from peft import AdaLoraConfig

    steps, target = run.hyperparameters.steps, mean_rank(run)
    return AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=target + max(1, target // 2),
        target_r=target,
        tinit=steps // 10,
        tfinal=steps // 2,
        deltaT=max(1, steps // 100),
        total_step=max(steps, 3),
        lora_alpha=run.lora_alpha / run.r * target,  # type: ignore[arg-type]  # a scale need not be whole
        target_modules=run.target_modules,
        lora_dropout=run.hyperparameters.lora_dropout,
    )


def mean_rank(run: Run) -> int:
    """Return the mean rank of the run's plan, rounded; without a plan the run's one rank."""
    ranks = list(run.rank_pattern.values())
    return max(1, round(sum(ranks) / len(ranks))) if ranks else run.r


def plain_lora(model: Any, weights: dict[str, Any]) -> Any:
    """Return by module name the factors of a plain LoRA that equals the AdaLoRA exactly, without pruned values.

    The product of the factors is B (A * E) alpha / (r + 1e-5), as PEFT computes it; E are the singular values, 0 if
    pruned. `weights` are the trained weights by parameter name.
    """
    from training.recipes.output.low_rank import Factors

    factors = {}
    for name, layer in model.named_modules():
        values = weights.get(f"{name}.lora_E.default")
        if values is None:
            continue
        ranks = (values.flatten() != 0).nonzero().flatten()
        # An engine expects a LoRA of at least rank 1: a row of zeros adds nothing.
        ranks = ranks if len(ranks) else values.new_zeros(1).long()
        a = (weights[f"{name}.lora_A.default"] * values)[ranks].float()
        scale = layer.scaling["default"] / (float(layer.ranknum["default"]) + 1e-5)
        b = weights[f"{name}.lora_B.default"][:, ranks].float() * scale
        factors[name.removeprefix("base_model.model.")] = Factors(a, b)
    return factors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
