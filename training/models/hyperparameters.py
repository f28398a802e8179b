"""Hyperparameters of a run: names, defaults and bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapterhub.core.errors import Invalid
from training.lm.token_sequences import LOSSES
from training.models.preference_methods import LEARNING_RATES


@dataclass(frozen=True)
class Hyperparameter:
    """A numeric hyperparameter in [least, most]; a whole number unless its default is a float."""

    default: int | float
    least: float
    most: float
    meaning: str


@dataclass(frozen=True)
class Choice:
    """A hyperparameter with a fixed set of words; the first is the default."""

    words: tuple[str, ...]
    meaning: str

    @property
    def default(self) -> str:
        """Return the first word, the default."""
        return self.words[0]


TABLE: dict[str, Hyperparameter | Choice] = {
    "rank": Hyperparameter(8, 1, 512, "Rank of every module, when no rank analysis plans them."),
    "scale": Hyperparameter(2, 1, 64, "alpha / r, equal for every module."),
    "rslora": Hyperparameter(0, 0, 1, "1: rank-stabilised: alpha / sqrt(r), so scale times sqrt(rank); no analysis."),
    "steps": Hyperparameter(40, 1, 1_000_000, "Optimiser steps."),
    "batch_size": Hyperparameter(4, 1, 1024, "Sequences per micro-batch."),
    "gradient_accumulation": Hyperparameter(1, 1, 1024, "Micro-batches per step."),
    "learning_rate": Hyperparameter(
        1e-3,
        1e-7,
        1.0,
        "Peak learning rate; 1e-3 suits LoRA on small models. Default of DPO, KTO: 5e-6, ORPO: 8e-5.",
    ),
    "max_length": Hyperparameter(256, 16, 1_000_000, "Tokens per sequence; longer ones are cut."),
    "warmup_steps": Hyperparameter(0, 0, 100_000, "Steps in which the learning rate rises to its peak; TRL's is 0."),
    "scheduler": Choice(
        ("linear", "cosine", "constant", "inverse_sqrt"),
        "How the learning rate falls after the warm-up; linear, to zero at the last step, is TRL's.",
    ),
    "weight_decay": Hyperparameter(
        0.0, 0, 1, "Share of the learning rate by which each step shrinks the trained weights; TRL's is 0. Not GaLore."
    ),
    "lora_dropout": Hyperparameter(
        0.0,
        0,
        0.9,
        "Share of a LoRA's inputs that is dropped at random in training; PEFT's is 0. For LoRA, QLoRA, DoRA, AdaLoRA.",
    ),
    "loss": Choice(
        LOSSES,
        "What the loss counts: every answer, last_answer: only a conversation's last one, with_prompt: prompts, too.",
    ),
    "seed": Hyperparameter(0, 0, 2**31, "Seed of order and start values."),
    "checkpoint_steps": Hyperparameter(20, 1, 1_000_000, "Steps between two checkpoints."),
    "eval_tokens": Hyperparameter(4096, 1, 100_000_000, "Held-out tokens to evaluate on, before and after."),
    "packing": Hyperparameter(0, 0, 1, "1: fill every row to max_length with whole sequences; faster on a GPU."),
    "recompute": Hyperparameter(0, 0, 1, "1: recompute activations: less memory, about a third slower."),
    "devices": Hyperparameter(1, 1, 64, "Processes on one host that train together, one per GPU."),
    "sharded": Hyperparameter(0, 0, 1, "1: several devices hold shards (FSDP), not replicas (DDP)."),
    "export_rank": Hyperparameter(0, 0, 512, "DoRA, GaLore, full: rank of the LoRA they become; 0: the run's ranks."),
    "galore_rank": Hyperparameter(64, 1, 4096, "GaLore: rank of the projected gradients."),
    "epochs": Hyperparameter(0, 0, 1000, "Times that the run reads the data, instead of steps; 0: by steps."),
    "eval_steps": Hyperparameter(
        0, 0, 1_000_000, "Steps between two held-out losses; the version is of the best of them. 0: no curve."
    ),
    "patience": Hyperparameter(0, 0, 1000, "Held-out losses without a better one after which the run stops; 0: never."),
    "as_chat": Hyperparameter(0, 0, 1, "1: prompts and completions are read as chats in the model's chat template."),
    "beta": Hyperparameter(
        0.1, 1e-4, 100, "DPO, KTO: a higher one stays nearer to the base. ORPO: weight of the odds ratio. TRL's is 0.1."
    ),
    "desirable_weight": Hyperparameter(1.0, 0, 100, "KTO: weight of the good answers; TRL's is 1."),
    "undesirable_weight": Hyperparameter(
        1.0, 0, 100, "KTO: weight of the bad answers; good over bad, by weight and number, should be 1 to 1.33."
    ),
    "init": Choice(("random", "eva"), "LoRA: where A starts, unless a rank analysis brings start values."),
}
# What the run is made of; the rest is the recipe's.
OUTER = ("rank", "scale", "rslora", "devices", "sharded", "init")
# What some methods do not have; 0 is as good as not named. TRL compares answers to preferences without dropout.
WITHOUT = {"lora_dropout": ("full", "galore", *LEARNING_RATES), "weight_decay": ("galore",)}


def with_defaults(values: dict[str, Any], method: str = "lora") -> dict[str, int | float | str]:
    """Return every hyperparameter: the given values, checked, and the method's defaults for the others.

    Raises Invalid that names the field.
    """
    if unknown := sorted(set(values) - set(TABLE)):
        raise refused(unknown[0], f"is unknown; known are {', '.join(TABLE)}.")
    if method in LEARNING_RATES:
        values = {"learning_rate": LEARNING_RATES[method], **values}
    return {name: checked(name, values.get(name, entry.default)) for name, entry in TABLE.items()}


def checked(name: str, value: Any) -> int | float | str:
    """Return the value of the hyperparameter in its type.

    For a whole number 2.0 becomes 2, for a switch false and true become 0 and 1. Raises Invalid for a wrong type or a
    value outside the limits, and KeyError for an unknown name.
    """
    entry = TABLE[name]
    if isinstance(entry, Choice):
        if value not in entry.words:
            raise refused(name, f"is {value!r}; choose one of {', '.join(entry.words)}.")
        return str(value)
    whole = isinstance(entry.default, int)
    if is_switch(entry) and isinstance(value, bool):
        return int(value)
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise refused(name, f"must be a {'whole ' if whole else ''}number, not {value!r}.")
    if not entry.least <= value <= entry.most:
        raise refused(name, f"is {value}; it must lie between {entry.least:g} and {entry.most:g}.")
    number: int | float = value
    return number


def is_switch(entry: Hyperparameter) -> bool:
    """Return True for a whole-number hyperparameter of 0 or 1, which may be given as false or true, too."""
    return isinstance(entry.default, int) and (entry.least, entry.most) == (0, 1)


def require_of_method(method: str, chosen: dict[str, Any]) -> None:
    """Check that no hyperparameter is set that has no effect with the method. Raises Invalid."""
    for name, methods in WITHOUT.items():
        if method in methods and chosen[name]:
            message = f"{name} has no effect with {method}: leave it at 0, or choose another method."
            raise Invalid(message, field=f"hyperparameters.{name}", code="not_of_method")


def schema() -> dict[str, Any]:
    """Return the JSON schema of the hyperparameters, for the description of the API."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: schema_of(entry) for name, entry in TABLE.items()},
    }


def schema_of(entry: Hyperparameter | Choice) -> dict[str, Any]:
    """Return the JSON schema of one hyperparameter."""
    common = {"default": entry.default, "description": entry.meaning}
    if isinstance(entry, Choice):
        return {"type": "string", "enum": list(entry.words), **common}
    kind = "integer" if isinstance(entry.default, int) else "number"
    types = [kind, "boolean"] if is_switch(entry) else kind
    return {"type": types, "minimum": entry.least, "maximum": entry.most, **common}


def refused(name: str, message: str) -> Invalid:
    """Return, without raising it, the error of an invalid hyperparameter; `message` continues its name."""
    return Invalid(f"{name} {message}", field=f"hyperparameters.{name}", code="bad_hyperparameter")
