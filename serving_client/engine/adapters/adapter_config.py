"""PEFT's adapter_config.json: the check that this engine can serve it, and each module's rank and scale."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from serving_client.engine.errors import AdapterMissing, AdapterUnusable
from serving_client.regex import BadPattern, compiled

CONFIG_NAME = "adapter_config.json"
Value = TypeVar("Value")

# Each of these changes what the weights mean, so serving without it would be silently wrong.
UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "layer_replication": "layer_replication",
    "alora_invocation_tokens": "aLoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# These initialisations also change the base weights; PEFT writes another value when it has converted the adapter.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraShape:
    """Ranks and scales that a PEFT configuration gives to the modules, by PEFT's rules."""

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rank_stabilised: bool

    def rank_of(self, module: str) -> int:
        """Return a module's rank, by its name in the base model: that of the first matching pattern, else `rank`."""
        return _first_match(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor that scales B @ A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

        Alpha and r are those of the first pattern that matches the module's name, else `alpha` and `rank`.
        """
        rank = self.rank_of(module)
        alpha = _first_match(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    @property
    def largest_rank(self) -> int:
        """The highest rank that the configuration names, used by a module or not."""
        return max(self.rank, *self.rank_pattern.values()) if self.rank_pattern else self.rank


def _first_match(pattern: dict[str, Value], module: str, default: Value) -> Value:
    matches = (value for key, value in pattern.items() if compiled(rf"(.*\.)?({key})$").match(module))
    return next(matches, default)


def read_lora_shape(folder: Path) -> LoraShape:
    """Read the ranks and scales from the adapter_config.json of a PEFT folder.

    Raises AdapterMissing if there is none, and AdapterUnusable if it cannot be read or uses an option that the engine
    does not support and that would change the answers.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterMissing(f"No {CONFIG_NAME} in {folder}.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise AdapterUnusable(str(error)) from error
    if not isinstance(config, dict):
        raise AdapterUnusable(f"{CONFIG_NAME} must hold a JSON object.")
    _refuse_unsupported(config)
    return _lora_shape(config)


def _refuse_unsupported(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterUnusable(f"peft_type must be LORA, not {config.get('peft_type')}.")
    for field, name in UNSUPPORTED.items():
        if config.get(field):
            raise AdapterUnusable(f"The embedded engine does not yet support {name}.")
    if config.get("bias", "none") != "none":
        raise AdapterUnusable(f"bias must be 'none', not '{config['bias']}': train the adapter without bias.")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise AdapterUnusable(f"init_lora_weights '{init}' changes the base model: convert the adapter to plain LoRA.")


def _lora_shape(config: dict[str, Any]) -> LoraShape:
    shape = LoraShape(
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        rank_pattern={key: _rank(value, key) for key, value in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={key: _alpha(value, key) for key, value in (config.get("alpha_pattern") or {}).items()},
        rank_stabilised=bool(config.get("use_rslora")),
    )
    for key in (*shape.rank_pattern, *shape.alpha_pattern):
        _check_pattern(key)
    return shape


def _rank(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterUnusable(f"The rank '{field}' must be a positive integer, not {value!r}.")
    return value


def _alpha(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterUnusable(f"The alpha '{field}' must be a finite number, not {value!r}.")
    return float(value)


def _check_pattern(key: str) -> None:
    try:
        compiled(rf"(.*\.)?({key})$")
    except BadPattern as error:
        raise AdapterUnusable(f"The pattern '{key}' is not a regular expression: {error}.") from error
