"""Further kinds of foreign adapters: patterns with look-ahead, odd headers, and what trainers write into either.

They are made from the matrices of `tests/cases/foreign_kinds.py`, as its own kinds are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.adapters import SHAPES
from tests.cases.foreign_kinds import (
    CONFIG,
    MODULES,
    RANK,
    SCALE,
    WEIGHTS,
    Accepted,
    Refused,
    by_ranks,
    named,
    write,
)

OF_TEXT = r"^(?!.*(?:visual|merger|patch_embed\)|[)(]x)).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
LAST_ATTENTION = r"(?=.*self_attn)(?!.*layers\.0\.).*_proj\Z"
# Longer than patterns of users may be: a list of layers that a program wrote.
BY_LAYERS = "|".join(
    rf"model\.layers\.{layer}\.(?:self_attn|mlp)\.(?:q|k|v|o|gate|up|down)_proj" for layer in range(48)
)


def with_header(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Change the header of the folder's weights."""
    return with_raw_header(folder, lambda raw: json.dumps(change(json.loads(raw))).encode())


def with_raw_header(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes of the header of the folder's weights."""
    weights = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(weights[:8], "little")
    header = change(weights[8:end])
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + weights[end:])
    return folder


def metadata(value: Any) -> Callable[[Path], Path]:
    return lambda at: with_header(write(at), lambda header: {**header, "__metadata__": value})


def of_type(dtype: str) -> Callable[[Path], Path]:
    """The plain adapter whose header names another type of numbers."""
    return lambda at: with_header(
        write(at),
        lambda header: {name: {**entry, "dtype": dtype} for name, entry in header.items() if name != "__metadata__"},
    )


ACCEPTED: dict[str, Accepted] = {
    "LLaMA-Factory's pattern for a model of images": Accepted(
        lambda at: write(at, target_modules=OF_TEXT), {"targets_pattern"}
    ),
    "look-ahead that chooses and leaves out": Accepted(
        lambda at: write(at, named(only="layers.1.self_attn"), target_modules=LAST_ATTENTION),
        {"targets_pattern"},
        only="layers.1.self_attn",
    ),
    "a long pattern": Accepted(lambda at: write(at, target_modules=BY_LAYERS), {"targets_pattern"}),
    "an adapter's name with a hyphen": Accepted(
        lambda at: write(at, named("base_model.model.{module}.lora_{side}.sft-v2.weight")), {"renamed"}
    ),
    "an adapter's name with a space": Accepted(
        lambda at: write(at, named("base_model.model.{module}.lora_{side}.my adapter.weight")), {"renamed"}
    ),
    "torch.compile within the layers": Accepted(
        lambda at: write(
            at, {name.replace("layers.0.", "layers.0._orig_mod."): matrix for name, matrix in named().items()}
        ),
        {"renamed"},
    ),
    "an adapter of an adapter": Accepted(
        lambda at: write(at, named("base_model.model.base_model.model.{module}.lora_{side}.weight")), {"renamed"}
    ),
    "ranks that EVA chose": Accepted(
        lambda at: write(
            at,
            by_ranks(dict.fromkeys(MODULES[:3], 7)),
            init_lora_weights="eva",
            eva_config={"rho": 2.0, "tau": 0.99, "adjust_scaling_factors": True},
            rank_pattern=dict.fromkeys(MODULES[:3], 7),
            alpha_pattern=dict.fromkeys(MODULES[:3], 7 * SCALE),
        )
    ),
    "rsLoRA with patterns": Accepted(
        lambda at: write(
            at,
            by_ranks({name: 16 for name in MODULES if name.endswith(("q_proj", "v_proj"))}),
            use_rslora=True,
            lora_alpha=SCALE * RANK**0.5,
            rank_pattern={"q_proj|v_proj": 16},
            alpha_pattern={r"self_attn\.[qv]_proj$": SCALE * 4},
        )
    ),
    "a start in capitals": Accepted(lambda at: write(at, init_lora_weights="Gaussian")),
    "control characters": Accepted(
        lambda at: write(at, revision="a\0\x1b[31m\nfault", peft_version="0.1\0", **{"off\0": None}),
        {"base_revision", "fields_ignored"},
    ),
    "a trainer's metadata": Accepted(metadata({"format": "pt", "ss_tag_frequency": "{}" * 5000, "title": "\0\u00e9"})),
    "no metadata": Accepted(metadata(None)),
    "a header with spaces around it": Accepted(lambda at: with_raw_header(write(at), lambda raw: b" " + raw + b"\n ")),
}
REFUSED: dict[str, Refused] = {
    "look-ahead against the tensors": Refused(
        lambda at: write(at, target_modules=r"^(?!.*mlp).*_proj"),
        *("not_targeted", f"{CONFIG}.target_modules", "6 modules have tensors"),
    ),
    "a long pattern against the tensors": Refused(
        lambda at: write(at, target_modules=BY_LAYERS.replace("|down", "")),
        *("not_targeted", f"{CONFIG}.target_modules", "2 modules have tensors"),
    ),
    "no target_modules, and other modules than PEFT's own": Refused(
        lambda at: write(at, target_modules=None),
        *("not_targeted", f"{CONFIG}.target_modules", "10 modules have tensors"),
    ),
    "layers beside a pattern": Refused(
        lambda at: write(at, target_modules=".*_proj", layers_to_transform=[0, 1]),
        *("contradiction", f"{CONFIG}.layers_to_transform", "in a list"),
    ),
    "names of layers beside a pattern": Refused(
        lambda at: write(at, target_modules=".*_proj", layers_pattern="layers"),
        *("contradiction", f"{CONFIG}.layers_pattern", "in a list"),
    ),
    "names of layers alone": Refused(
        lambda at: write(at, layers_pattern="layers"),
        *("contradiction", f"{CONFIG}.layers_pattern", "leave it out"),
    ),
    "a rank that is not whole": Refused(
        lambda at: write(at, rank_pattern={MODULES[0]: 4.0}),
        *("bad_field", f"{CONFIG}.rank_pattern", "whole numbers"),
    ),
    "flags in a key": Refused(
        lambda at: write(at, rank_pattern={"(?i)Q_PROJ": 4}),
        *("bad_pattern", f"{CONFIG}.rank_pattern", "(?i) cannot stand"),
    ),
    "metadata with a number": Refused(metadata({"epoch": 3}), *("bad_header", WEIGHTS, "object of texts")),
    "metadata with an object": Refused(
        metadata({"config": {"rank": "4"}}), *("bad_header", WEIGHTS, "object of texts")
    ),
    "metadata in a list": Refused(metadata(["pt"]), *("bad_header", WEIGHTS, "object of texts")),
    "a header in UTF-16": Refused(
        lambda at: with_raw_header(write(at), lambda raw: raw.decode().encode("utf-16-le")),
        *("bad_header", WEIGHTS, "cannot be read"),
    ),
    "a header with a byte-order mark": Refused(
        lambda at: with_raw_header(write(at), lambda raw: b"\xef\xbb\xbf" + raw),
        *("bad_header", WEIGHTS, "cannot be read"),
    ),
    "scales of microscaled numbers": Refused(of_type("F8_E8M0"), *("dtype", WEIGHTS, "type F8_E8M0")),
    "8-bit floats with their scales": Refused(
        lambda at: write(
            at, named() | {f"base_model.model.{MODULES[0]}.lora_A.weight_scale": np.ones((4, 1), np.float32)}
        ),
        *("quantised_factors", WEIGHTS, "only its base model"),
    ),
    "4 bits of bitsandbytes": Refused(
        lambda at: write(at, named() | {f"base_model.model.{MODULES[0]}.lora_A.weight.absmax": np.ones(4, np.float32)}),
        *("quantised_factors", WEIGHTS, "only its base model"),
    ),
    "complex numbers": Refused(of_type("C64"), *("dtype", WEIGHTS, "type C64")),
    "a matrix that is a single number": Refused(
        lambda at: write(
            at,
            {
                name: np.array(1, np.float32) if "layers.0.self_attn.q_proj.lora_A" in name else matrix
                for name, matrix in named().items()
            },
        ),
        *("bad_shape", WEIGHTS, "A [] and B [16, 4]"),
    ),
    "magnitudes in 16 bits": Refused(
        lambda at: write(
            at,
            named()
            | {
                f"base_model.model.{module}.lora_magnitude_vector.default.weight": np.ones(
                    SHAPES[module.rpartition(".")[2]][0], np.float16
                )
                for module in MODULES
            },
            use_dora=True,
        ),
        *("dora", WEIGHTS, "register the result"),
    ),
}
