"""Requirements of the methods that learn from preferences: the kind of data, and their own hyperparameters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.core.errors import Invalid
from training.lm.token_sequences import ANSWERS

# The kinds of data that a method learns from; every other method needs answers.
LEARNS_FROM = {"dpo": ("pairs",), "kto": ("pairs", "labels"), "orpo": ("pairs",)}
# Peak learning rates of TRL's own LoRA examples: the one that suits answers is far too high for preferences.
LEARNING_RATES = {"dpo": 5e-6, "kto": 5e-6, "orpo": 8e-5}
# Hyper-parameters that only these methods know, with their defaults.
OWN: dict[str, tuple[tuple[str, ...], float]] = {
    "beta": (tuple(LEARNS_FROM), 0.1),
    "desirable_weight": (("kto",), 1.0),
    "undesirable_weight": (("kto",), 1.0),
}
HOLDS = {
    "answers": "one answer for each row",
    "pairs": "preference pairs (chosen, rejected)",
    "labels": "answers marked good or bad (label)",
}
NEEDS = {"dpo": HOLDS["pairs"], "kto": f"{HOLDS['pairs']}, or {HOLDS['labels']}", "orpo": HOLDS["pairs"]}


def require_kind(method: str, kind: str, dataset: str, field: str) -> None:
    """Check that the method learns from datasets of this kind. Raises Invalid that says what would fit.

    `dataset` is the name of the dataset and `field` the field to blame.
    """
    if kind in LEARNS_FROM.get(method, ("answers",)):
        return
    if method in LEARNS_FROM:
        message = f"{dataset} holds {HOLDS[kind]}, but {method} learns from {NEEDS[method]}."
        raise Invalid(message, field=field, code="no_preference_data")
    fitting = " or ".join(name for name, kinds in LEARNS_FROM.items() if kind in kinds)
    message = f"{dataset} holds {HOLDS[kind]}, but {method} needs one answer for each row: choose the method {fitting}."
    raise Invalid(message, field=field, code="preference_data")


def require_settings(method: str, chosen: Mapping[str, Any]) -> None:
    """Check that the method honours the chosen settings of preferences, packing, sharding and loss. Raises Invalid.

    `chosen` has every hyperparameter; of those that the method does not honour, each must have its default. With kto
    `batch_size` must be at least 2.
    """
    for name, (methods, default) in OWN.items():
        if method not in methods and chosen[name] != default:
            raise refused(name, f"{name} is of {', '.join(methods)}: leave it at {default:g}.")
    if method not in LEARNS_FROM:
        return
    for name in ("packing", "sharded"):
        if chosen[name]:
            raise refused(name, f"{name} is not for {method}: leave it at 0.")
    if chosen["loss"] != ANSWERS:
        raise refused("loss", f"loss is not for {method}, which compares whole answers: leave it at {ANSWERS}.")
    if method == "kto" and chosen["batch_size"] < 2:
        raise refused("batch_size", "batch_size is 1, but kto compares the answers of a batch: take 2 or more.")


def refused(name: str, message: str) -> Invalid:
    """Return, without raising it, the error of a hyperparameter that the method does not honour."""
    return Invalid(message, field=f"hyperparameters.{name}", code="bad_preference_setting")
