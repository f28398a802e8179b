"""Allow-list of fields and values for an uploaded adapter_config.json. Pure: no torch, no database.

Engines and libraries act on some of these fields: they import modules, run regular expressions, open other paths and
change the base weights. So every key must be known, and a key that acts must have the value that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_NAMES = 1000
MAX_TEXT = 500

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Return True for a short text or None."""
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)


def is_flag(value: Any) -> bool:
    """Return True for a boolean or None."""
    return value is None or type(value) is bool


def is_share(value: Any) -> bool:
    """Return True for a number from 0 to 1 or None."""
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def is_rank(value: Any) -> bool:
    """Return True for a whole number that can be a rank."""
    return type(value) is int and 1 <= value <= 2**15


def is_alpha(value: Any) -> bool:
    """Return True for a positive number that can be an alpha."""
    return type(value) in (int, float) and 0 < value <= 2**20


def is_names(value: Any) -> bool:
    """Check for a list of module names, or None if the file omits the field."""
    return value is None or (isinstance(value, list) and len(value) <= MAX_NAMES and all(map(is_text, value)))


def is_pattern(value: Any) -> bool:
    """Return True for a mapping of modules to positive numbers, or None."""
    return value is None or (isinstance(value, dict) and all(map(is_alpha, value.values())))


def is_off(value: Any) -> bool:
    """Return True for a value that switches the feature off."""
    return value in (None, False, "", "none") or value == [] or value == {}


def is_plain_init(value: Any) -> bool:
    """Accept initialisations that keep the base weights; any other makes the adapter alone silently wrong."""
    return value in (None, True, False, "gaussian", "eva", "orthogonal")


def is_default_module(value: Any) -> bool:
    """Return True for None and for PEFT's default, `megatron.core`; any other value names a module to import."""
    return value in (None, "megatron.core")


def is_unread(value: Any) -> bool:
    """Accept any value of a field that only a new training run reads; neither we nor the engines read it."""
    return True


FIELDS: dict[str, tuple[Check, str]] = {
    "r": (is_rank, "a whole number from 1 to 32768"),
    "lora_alpha": (is_alpha, "a positive number"),
    "target_modules": (is_names, "a list of names, not a pattern"),
    "rank_pattern": (is_pattern, "an object of module names and positive numbers"),
    "alpha_pattern": (is_pattern, "an object of module names and positive numbers"),
    "use_rslora": (is_flag, "true or false"),
    "lora_dropout": (is_share, "a number from 0 to 1"),
    "inference_mode": (is_flag, "true or false"),
    "base_model_name_or_path": (is_text, "a short text"),
    "revision": (is_text, "a short text"),
    "task_type": (is_text, "a short text"),
    "peft_type": (is_text, "LORA"),
    "peft_version": (is_text, "a short text"),
    "init_lora_weights": (is_plain_init, "an initialisation that leaves the base model as it is"),
    "megatron_core": (is_default_module, "left out"),
}
FIELDS |= dict.fromkeys(
    ("exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size", "loftq_config", "eva_config"),
    (is_unread, ""),
)
# Each of these fields changes the meaning of the weights, or the code that runs when the file is opened.
FIELDS |= dict.fromkeys(
    (
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "fan_in_fan_out",
        "kasa_config",
        "layer_replication",
        "lora_bias",
        "lora_ga_config",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "runtime_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "velora_config",
    ),
    (is_off, "left out or switched off, because it cannot be served"),
)


def fault(config: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first invalid field and an error message for it, or None if the configuration is valid."""
    for name, value in config.items():
        if name not in FIELDS:
            # The name becomes part of an error response, so characters outside ASCII are escaped.
            printable = name[:100].encode("ascii", "backslashreplace").decode()
            return printable, f"{printable!r} is not a known field of a LoRA configuration: remove it."
        check, wanted = FIELDS[name]
        if not check(value):
            return name, f"{name} must be {wanted}."
    return None
