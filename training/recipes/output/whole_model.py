"""Output of methods that train the whole model: its checkpoint, and the nearest LoRA, which engines can serve."""

from __future__ import annotations

import shutil

import torch

from training.lm.base_model import load_model, load_tokenizer
from training.recipes.output.adapter_output import trainable
from training.recipes.output.low_rank import changes_of, nearest, save_factors
from training.recipes.output.served_loss import loss_as_served
from training.recipes.run_file import Run
from training.recipes.training_loop.trainer import Facts, Trained


def keep(trained: Trained, run: Run) -> Facts:
    """Write OUTPUT/model and OUTPUT/adapter; return the facts for the result.

    They are the numbers of parameters of the adapter and of the trained weights, the adapter's error against the model
    (relative, Frobenius norm), and the adapter's loss as served.
    """
    base = {name: weight.detach() for name, weight in load_model(run.base_model).named_parameters()}
    save_checkpoint(trained, run, next(iter(base.values())).dtype)
    factors, error = nearest(changes_of(run, trained.weights, base), run)
    parameters = save_factors(factors, run)
    return {
        "parameters": parameters,
        "trained_parameters": trainable(trained.model),
        "reconstruction_error": error,
        "loss_served": loss_as_served(trained, run),
    }


def save_checkpoint(trained: Trained, run: Run, dtype: torch.dtype) -> None:
    """Write the model, converted to `dtype`, and its tokenizer to OUTPUT/model, for transformers and vLLM.

    The folder is replaced once the new one is complete.
    """
    part, folder = run.output / "model.part", run.output / "model"
    shutil.rmtree(part, ignore_errors=True)
    trained.model.save_pretrained(
        str(part), state_dict={name: weight.to(dtype) for name, weight in whole_state(trained).items()}
    )
    load_tokenizer(run.base_model).save_pretrained(str(part))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def whole_state(trained: Trained) -> dict[str, torch.Tensor]:
    """Return the model's state dictionary, in which `trained.weights` replace the weights of the same names.

    They are gathered from all processes.
    """
    state = {name: weight for name, weight in trained.model.state_dict().items() if name not in trained.weights}
    return {**state, **trained.weights}
