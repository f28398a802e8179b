"""Allow-list of fields and values for an uploaded adapter_config.json. Pure: no torch, no database.

Engines and libraries act on some of these fields: they import modules, run regular expressions, open other paths and
change the base weights. So such a field must have the value that switches it off, and so must an unknown field.
Replicas never read this file: the configuration that they read is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from registry.adapter_files.findings import Finding, fault, listed, notice, printable
from registry.adapter_files.pattern_keys import PatternKeys
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import CONVERT, MERGE

MAX_NAMES = 1000
MAX_TEXT = 500
MAX_PATTERN = 20_000

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Return True for None or a text of at most MAX_TEXT characters."""
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)


def is_flag(value: Any) -> bool:
    """Return True for a boolean or None."""
    return value is None or type(value) is bool


def is_share(value: Any) -> bool:
    """Return True for a number from 0 to 1 or None."""
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def is_rank(value: Any) -> bool:
    """Return True for a whole number from 1 to 32768, the permitted ranks."""
    return type(value) is int and 1 <= value <= 2**15


def is_alpha(value: Any) -> bool:
    """Return True for a number above 0 and at most 2**20, the permitted alphas."""
    return type(value) in (int, float) and 0 < value <= 2**20


def is_names(value: Any) -> bool:
    """Return True for None or a list of at most MAX_NAMES names, each a text of at most MAX_TEXT characters or None."""
    return value is None or (isinstance(value, list) and len(value) <= MAX_NAMES and all(map(is_text, value)))


def is_targets(value: Any) -> bool:
    """Return True for None, a list of names, or a text of at most MAX_PATTERN characters.

    A text is a pattern or `all-linear`.
    """
    return (isinstance(value, str) and len(value) <= MAX_PATTERN) or is_names(value)


def is_layers(value: Any) -> bool:
    """Return True for a layer's number, a list of layer numbers, or None."""
    return value is None or all(type(layer) is int for layer in (value if isinstance(value, list) else [value]))


def is_pattern(value: Any) -> bool:
    """Return True for None or a mapping whose values are all numbers above 0 and at most 2**20."""
    return value is None or (isinstance(value, dict) and all(map(is_alpha, value.values())))


def is_ranks(value: Any) -> bool:
    """Return True for None or a mapping whose values are all permitted ranks."""
    return value is None or (isinstance(value, dict) and all(map(is_rank, value.values())))


def is_off(value: Any) -> bool:
    """Return True for a value that switches the feature off: None, False, "", "none", or an empty list or object."""
    return value in (None, False, "", "none") or value == [] or value == {}


def is_plain_init(value: Any) -> bool:
    """Return True for an initialisation that leaves the base weights unchanged.

    With any other the training changed the base weights, and the adapter on the original base model is wrong.
    """
    # PEFT reads two names in any spelling. MiCA begins at singular vectors of the base weights and leaves those alone.
    read_in_any_case = isinstance(value, str) and value.lower() in ("gaussian", "mica")
    return value in (None, True, False, "eva", "orthogonal") or read_in_any_case


def is_default_module(value: Any) -> bool:
    """Return True for None and for PEFT's default, `megatron.core`; any other value names a module to import."""
    return value in (None, "megatron.core")


def is_unread(value: Any) -> bool:
    """Return True for every value: neither AdapterHub nor the engines read the field."""
    return True


FIELDS: dict[str, tuple[Check, str]] = {
    "r": (is_rank, "a whole number from 1 to 32768"),
    "lora_alpha": (is_alpha, "a positive number"),
    "target_modules": (is_targets, "a list of names, a pattern, or all-linear"),
    "exclude_modules": (is_targets, "a list of names, or a pattern"),
    "layers_to_transform": (is_layers, "a layer's number, or a list of them"),
    "layers_pattern": (is_targets, "a name, or a list of them"),
    "rank_pattern": (is_ranks, "an object of module names and whole numbers from 1 to 32768"),
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
FIELDS |= dict.fromkeys(("auto_mapping", "qalora_group_size", "loftq_config", "eva_config"), (is_unread, ""))
# It says how whole modules are trained, and those are checked by themselves.
FIELDS["ensure_weight_tying"] = (is_flag, "true or false")
# Tasks whose answer is no text.
OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
# What trainers write beside PEFT's fields: who saved the adapter, of what, and at which rates. PEFT reads none of it.
INFORMATIVE = {
    *("transformers_version", "unsloth_version", "library_name", "model_type", "architectures", "_name_or_path"),
    *("quantization_config", "torch_dtype", "dtype", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "_commit_hash"),
}
# Each of these fields changes the meaning of the weights, or the code that runs when the file is opened.
FIELDS |= dict.fromkeys(
    (
        "alora_invocation_tokens",
        "arrow_config",
        "bias",
        "corda_config",
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


# The way out of a field that cannot be served; the others are to be left out or switched off.
ROUTES = {
    "bias": "Train with bias = none, or merge: " + MERGE[0].lower() + MERGE[1:],
    "fan_in_fan_out": "This base model has linear layers: save the adapter with fan_in_fan_out = false.",
    "init_lora_weights": "The base model was changed before the training. Save it as plain LoRA: PEFT's "
    "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`.",
    "lora_alpha": "Write the alpha of the training; PEFT loads no null, and takes 8 where the field is missing.",
    "alora_invocation_tokens": "Engines apply an adapter to the whole prompt, not from a token on: train without it.",
    "layer_replication": MERGE,
    "lora_bias": MERGE,
    "modules_to_save": MERGE,
    "target_parameters": MERGE,
    "trainable_token_indices": MERGE,
    "use_dora": MERGE,
}
# Values of init_lora_weights that change the base model -> the method's name.
INITIALISATIONS = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
METHOD_ROUTES = {"ADALORA": CONVERT}
METHOD_ROUTES |= dict.fromkeys(
    ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
    "It changes the model's input, not its weights, and cannot be merged. Train a LoRA.",
)
METHOD_ROUTES |= dict.fromkeys(("XLORA", "POLY"), "It mixes several adapters: send each of them, as PEFT saved it.")


def config_findings(config: dict[str, Any]) -> Iterator[Finding]:
    """Yield every fault of a configuration, and notices on ignored fields and on a task whose answer is no text.

    Ignored are unknown fields that are switched off and those of INFORMATIVE. A configuration of a method other than
    LoRA yields only the fault that says so.
    """
    if other_method := method_fault(config):
        yield other_method
        return
    ignored = []
    for name, value in config.items():
        if name not in FIELDS:
            if is_off(value) or name in INFORMATIVE:
                ignored.append(name)
            else:
                yield unknown_field(name)
        elif not FIELDS[name][0](value):
            yield bad_field(name, value)
    if (task := config.get("task_type")) in OTHER_TASKS:
        cause = f"It was trained for {task}; its head is not here, and engines answer with text."
        yield notice("task_type", f"{CONFIG}.task_type", cause)
    if ignored:
        cause = (
            f"Fields that PEFT does not read, or that are switched off, were left out: {listed(sorted(ignored), 8)}."
        )
        yield notice("fields_ignored", CONFIG, cause)
    yield from layer_findings(config)
    for field in ("rank_pattern", "alpha_pattern"):
        yield from pattern_findings(config.get(field), f"{CONFIG}.{field}")


def bad_field(name: str, value: Any) -> Finding:
    """Return the fault of a known field whose value is not permitted.

    For `init_lora_weights` its cause names the method, such as PiSSA, that the value stands for, or says that it is not
    known.
    """
    cause = f"{name} must be {FIELDS[name][1]}."
    if name == "init_lora_weights" and isinstance(value, str):
        method = INITIALISATIONS.get(value.lower().partition("_niter_")[0])
        cause += f" {method} changes it." if method else f" {printable(value)[:40]!r} is not known to."
    return fault("bad_field", f"{CONFIG}.{name}", cause, ROUTES.get(name, ""))


def layer_findings(config: dict[str, Any]) -> Iterator[Finding]:
    """Yield one fault if PEFT would not open the configuration because of its choice of layers; else nothing."""
    for field in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.get("target_modules"), str) and not is_off(config.get(field)):
            cause = f"{field} does not go with a pattern in target_modules: PEFT does not open such a configuration."
            yield fault("contradiction", f"{CONFIG}.{field}", cause, "Name the modules in a list, or leave it out.")
            return
    if config.get("layers_pattern") and config.get("layers_to_transform") is None:
        cause = "layers_pattern says nothing without layers_to_transform: PEFT does not open such a configuration."
        yield fault("contradiction", f"{CONFIG}.layers_pattern", cause, "Name the layers, or leave it out.")


def are_valid(config: dict[str, Any], names: Iterable[str]) -> bool:
    """Return True if each field in `names` has a permitted value or is left out."""
    return all(name not in config or FIELDS[name][0](config[name]) for name in names)


def method_fault(config: dict[str, Any]) -> Finding | None:
    """Return the fault of a configuration whose method is not LoRA or that is not PEFT's (MLX); None for LoRA."""
    method = config.get("peft_type")
    if method == "LORA":
        return None
    if "fine_tune_type" in config or "lora_parameters" in config:
        return fault("mlx", f"{CONFIG}.peft_type", "This is a configuration of MLX, not of PEFT.", CONVERT)
    if not isinstance(method, str):
        return unnamed_method(config)
    named = printable(method)[:40]
    if named.rpartition(".")[2].upper() == "LORA":
        route = "Write LORA: PEFT reads no other spelling."
        return fault("other_method", f"{CONFIG}.peft_type", f"peft_type is {named}, not LORA.", route)
    cause = f"peft_type is not LORA: the method is {named}, and engines serve LORA."
    return fault("other_method", f"{CONFIG}.peft_type", cause, METHOD_ROUTES.get(named, MERGE))


def unnamed_method(config: dict[str, Any]) -> Finding:
    """Return the fault of a configuration without a method, which is not PEFT's, with what it seems to be."""
    inner = next((name for name, value in config.items() if isinstance(value, dict) and "peft_type" in value), "")
    cause, route = (
        "peft_type is not named: PEFT did not write this file.",
        "Send the adapter_config.json beside the weights.",
    )
    if inner:
        route = f"PEFT's configuration lies inside it, in {printable(inner)[:40]!r}: send that object alone."
    elif {"hidden_size", "vocab_size"} & config.keys():
        cause = "peft_type is not named: this is the configuration of a whole model."
    return fault("other_method", f"{CONFIG}.peft_type", cause, route)


def unknown_field(name: str) -> Finding:
    """Return the fault of a field that is not known and is switched on."""
    # The name becomes part of an error response, so characters outside ASCII are escaped.
    quoted = printable(name[:100])
    cause = f"{quoted!r} is not a known field of a LoRA configuration, and it is switched on."
    return fault("unknown_field", f"{CONFIG}.{quoted}", cause, "Remove it if the adapter works without it.")


def pattern_findings(pattern: Any, field: str) -> Iterator[Finding]:
    """Yield a fault if a key of the pattern cannot be run by RE2, or too many keys are regular expressions.

    Nothing is yielded if `pattern` is not a mapping. `field` is the field to blame.
    """
    if not isinstance(pattern, dict):
        return
    try:
        PatternKeys(pattern)
    except ValueError as error:
        yield fault("bad_pattern", field, f"{error}.", "Write the keys as full module names.")
