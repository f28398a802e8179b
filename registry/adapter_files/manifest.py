"""Reader for an adapter's files that checks them against the base model before storage. No torch, no database."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.core.errors import Invalid
from registry.adapter_files.config_schema import fault
from registry.adapter_files.served_config import CONFIG, pattern_value, served_config

WEIGHTS = "adapter_model.safetensors"
MAX_HEADER_BYTES = 2 * 2**20
MAX_TENSORS = 20_000
MAX_CONFIG_BYTES = 2**20
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TENSOR = re.compile(
    r"base_model\.model\.(?P<module>model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<kind>[a-z]+_proj))"
    r"\.lora_(?P<side>[AB])\.weight"
)
PATTERN_KEY = re.compile(r"\^?\w+(?:(?:\.\w+)*|(?:\\\.\w+)*)", re.ASCII)

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Manifest:
    """A checked LoRA adapter: rank of each module, one effective scale, parameter count, size and configuration."""

    ranks: dict[str, int]
    parameters: int
    size_bytes: int
    scale: float
    config: dict[str, Any]

    @property
    def max_rank(self) -> int:
        """Return the highest rank of a module."""
        return max(self.ranks.values())

    @classmethod
    def read(cls, folder: Path, shapes: Shapes, layers: int, bases: tuple[str, ...] = ()) -> Manifest:
        """Read and check a PEFT folder; `shapes` maps each module kind to (out, in). Raises Invalid.

        `bases` lists the names that the configuration may give for its base model; an empty tuple allows any.
        """
        config, tensors, ranks = read_parts(folder, shapes, layers)
        refuse_other_base(config, bases)
        scale = one_scale(config, ranks)
        parameters = sum(math.prod(shape) for shape in tensors.values())
        served = served_config(config, ranks, layers)
        return cls(ranks, parameters, (folder / WEIGHTS).stat().st_size, scale, served)


def read_parts(folder: Path, shapes: Shapes, layers: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return the checked configuration, tensor shapes and ranks; scales are not checked. Raises Invalid."""
    refuse_other_files(folder)
    config = read_config(folder / CONFIG)
    tensors = read_header(folder / WEIGHTS)
    return config, tensors, ranks_of(tensors, shapes, layers)


def refused(message: str, field: str) -> Invalid:
    """Return the error of an adapter that is not accepted."""
    return Invalid(message, field=field, code="bad_adapter")


def refuse_other_base(config: dict[str, Any], bases: tuple[str, ...]) -> None:
    """Check that the configuration names this base model or none. Raises Invalid."""
    named = str(config.get("base_model_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    if bases and named and named.casefold() not in [base.casefold() for base in bases]:
        raise refused(
            f"The configuration names the base model {named[:100]!r}; this adapter's is {bases[0]!r}.",
            f"{CONFIG}.base_model_name_or_path",
        )


def refuse_other_files(folder: Path) -> None:
    """Check that the folder holds the two files of an adapter and nothing else. Raises Invalid."""
    names = {path.name for path in folder.iterdir()}
    if names != {CONFIG, WEIGHTS}:
        differing = ", ".join(sorted(names ^ {CONFIG, WEIGHTS}))
        raise refused(f"An adapter is exactly {CONFIG} and {WEIGHTS}; missing or not allowed: {differing}.", "files")


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration and reject fields that engines would not serve alike. Raises Invalid."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise refused("The configuration is over 1 MB.", CONFIG)
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise refused("The configuration is not valid JSON.", CONFIG) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise refused("peft_type is not LORA.", f"{CONFIG}.peft_type")
    if invalid := fault(config):
        field, message = invalid
        raise refused(message, f"{CONFIG}.{field}")
    for field in ("rank_pattern", "alpha_pattern"):
        check_pattern(config.get(field) or {}, f"{CONFIG}.{field}")
    return config


def check_pattern(pattern: Any, field: str) -> None:
    """Reject pattern keys that are not plain module names. Raises Invalid.

    Engines run the keys as regular expressions and we compare them as text, so both readings must agree.
    """
    if not isinstance(pattern, dict):
        raise refused("A pattern must be an object of module names.", field)
    for key in pattern:
        if not PATTERN_KEY.fullmatch(key):
            raise refused(f"{key[:200]!r} is not a plain module name, with or without ^ and escaped dots.", field)


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor shapes from the safetensors header, parsed with size limits before any library opens the file."""
    # safetensors itself takes a header of 100 MB, and the last of two tensors with one name.
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise refused("This is not a safetensors file, or its header is over 2 MB.", WEIGHTS)
        raw = stream.read(length)
    refuse_crowd(raw)
    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
        return check_tensors(header, size - 8 - length)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise refused("The safetensors header cannot be read.", WEIGHTS) from None


def refuse_crowd(raw: bytes) -> None:
    """Reject a header with more than MAX_TENSORS tensors, by counting brackets before it is parsed. Raises Invalid."""
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b"[") > 2 * MAX_TENSORS:
        raise refused(f"The safetensors header names more than {MAX_TENSORS:,} tensors.", WEIGHTS)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary of JSON pairs. Raises ValueError for a key that stands there twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("duplicate key")
    return dict(pairs)


def check_tensors(header: Any, body_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return the tensor shapes, after checking offsets and sizes. Raises ValueError, TypeError or LookupError.

    Tensors must fill the file's body without gap or overlap, and each one's length must match its shape.
    """
    if not isinstance(header, dict):
        raise TypeError("no object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError("too many tensors")
    end = 0
    for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"][0]):
        start, stop = tensor["data_offsets"]
        # JSON integers have no size limit: the product of unchecked ones could take minutes.
        if not all(map(is_size, (start, stop, *tensor["shape"][:5]))) or len(tensor["shape"]) > 4:
            raise ValueError("size")
        if start != end or stop - start != math.prod(tensor["shape"]) * DTYPE_BYTES[tensor["dtype"]]:
            raise ValueError("offsets")
        end = stop
    if end != body_bytes:
        raise ValueError("body")
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def is_size(value: Any) -> bool:
    """Return True for a whole number that can be a size or an offset."""
    return type(value) is int and 0 <= value < 2**48


def ranks_of(tensors: dict[str, tuple[int, ...]], shapes: Shapes, layers: int) -> dict[str, int]:
    """Return each module's rank. Raises Invalid unless every A has its B and both fit the base model."""
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        match = TENSOR.fullmatch(name)
        if not match or match["kind"] not in shapes or int(match["layer"]) >= layers:
            raise refused(f"{name[:200]!r} is not a LoRA tensor of this base model.", WEIGHTS)
        sides.setdefault(match["module"], {})[match["side"]] = shape
    if not sides:
        raise refused("The file contains no LoRA tensors.", WEIGHTS)
    return {module: rank_of(module, pair, shapes) for module, pair in sorted(sides.items())}


def rank_of(module: str, pair: dict[str, tuple[int, ...]], shapes: Shapes) -> int:
    """Return the rank of the module's pair of matrices. Raises Invalid if their shapes do not fit the layer."""
    out, width = shapes[module.rsplit(".", 1)[1]]
    a, b = pair.get("A", ()), pair.get("B", ())
    if len(a) != 2 or len(b) != 2 or a[0] < 1 or a != (a[0], width) or b != (out, a[0]):
        raise refused(f"{module}: A {list(a)} and B {list(b)} do not fit a layer of shape {[out, width]}.", WEIGHTS)
    return a[0]


def one_scale(config: dict[str, Any], ranks: dict[str, int]) -> float:
    """Return the effective scale (alpha / r) that all modules share. Raises Invalid if they differ.

    With a single scale, engines that ignore the patterns still scale correctly.
    """
    scales = {module: scale_of(config, module, rank) for module, rank in ranks.items()}
    values = list(scales.values())
    if not all(math.isfinite(value) and math.isclose(value, values[0], rel_tol=1e-6) for value in values):
        raise refused(
            "The modules have different effective scales (alpha / r): upload with fold=true to fold them into B.",
            f"{CONFIG}.alpha_pattern",
        )
    return values[0]


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the module's alpha / r, as PEFT computes it. Raises Invalid for a rank that differs from the file's."""
    declared = pattern_value(config.get("rank_pattern") or {}, module, config.get("r"))
    if declared != rank:
        raise refused(f"{module} has rank {rank}, but the configuration says {declared}.", f"{CONFIG}.rank_pattern")
    alpha = pattern_value(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise refused("lora_alpha is not a number.", f"{CONFIG}.lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
