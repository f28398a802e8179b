"""Hostile headers and configurations without end: `python -m tests.soak.upload_fuzz SECONDS SEED FOLDER`.

Each case is a valid pair with a few mutations. It must end as an adapter or as a refusal; anything else is a crash and
ends the program. It prints the number of cases, the CPU seconds of the slowest, and its own peak of memory.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterhub.core.errors import Invalid
from registry.adapter_files.config_schema import FIELDS
from registry.adapter_files.manifest import Manifest
from training.recipes.peak_memory import own_peak

SHAPES = {"q_proj": (16, 16), "v_proj": (8, 16)}
LAYERS = 2
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "a" * 3000,
    "\ud800",
    "\0",
    "(.*)*x!",
    "../../x",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    [2**40] * 50,
    "F64",
    "é" * 90,
]


def valid() -> tuple[dict[str, Any], dict[str, Any], int]:
    """A configuration, a header, and the length of the numbers."""
    header, end = {}, 0
    for layer in range(LAYERS):
        for kind, (out, width) in SHAPES.items():
            for side, shape in (("A", [4, width]), ("B", [out, 4])):
                size = 4 * shape[0] * shape[1]
                name = f"base_model.model.model.layers.{layer}.self_attn.{kind}.lora_{side}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
                end += size
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": sorted(SHAPES)}, header, end


def mutate(value: Any, dice: random.Random) -> Any:
    """The value with one place of it replaced, dropped, doubled or nested."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(sorted(value, key=repr))
        return {**value, key: mutate(value[key], dice)} if dice.random() < 0.7 else renamed(value, key, dice)
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [*value[:place], mutate(value[place], dice), *value[place + 1 :]]
    if isinstance(value, int) and dice.random() < 0.5:
        return value + dice.choice([-1, 1, 4, -(2**31), 2**62])
    return dice.choice(ODD)


def renamed(value: dict[str, Any], key: str, dice: random.Random) -> dict[str, Any]:
    rest = {name: item for name, item in value.items() if name != key}
    return rest | dice.choice([{}, {key + "x": value[key]}, {dice.choice(sorted(FIELDS)): value[key]}])


def large(dice: random.Random) -> bytes:
    """Headers that are costly rather than wrong."""
    count = dice.choice([10, 1000, 30_000])
    kinds: list[Callable[[], str]] = [
        lambda: "[" * count * 3,
        lambda: '{"a":' * count * 3,
        lambda: json.dumps({f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)}),
        lambda: json.dumps({"x": {"dtype": "F32", "shape": [10**4000] * (count % 400), "data_offsets": [0, 1]}}),
        lambda: '{"' + "a" * count * 30 + '": 1}',
        lambda: "{" + ",".join('"a": 1' for _ in range(count)) + "}",
        lambda: "1" * count,
    ]
    return dice.choice(kinds)().encode()


def noisy(raw: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, or a part cut off."""
    if dice.random() < 0.3:
        return raw[: dice.randrange(len(raw) + 1)]
    mutable = bytearray(raw)
    for _ in range(dice.randrange(4)):
        if mutable:
            mutable[dice.randrange(len(mutable))] = dice.randrange(256)
    return bytes(mutable)


def write_case(folder: Path, dice: random.Random) -> None:
    config, header, end = valid()
    for _ in range(dice.randrange(3)):
        config = mutate(config, dice)
    for _ in range(dice.randrange(3)):
        header = mutate(header, dice)
    raw = large(dice) if dice.random() < 0.03 else json.dumps(header).encode()
    text = large(dice) if dice.random() < 0.03 else json.dumps(config).encode()
    raw = noisy(raw, dice) if dice.random() < 0.3 else raw
    length = len(raw) if dice.random() < 0.95 else dice.choice([0, 1, 2**31, 2**63, len(raw) + 1])
    body = bytes(end if dice.random() < 0.9 else dice.randrange(2 * end))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + raw + body)
    (folder / "adapter_config.json").write_bytes(noisy(text, dice) if dice.random() < 0.3 else text)


def main(seconds: float, seed: int, folder: Path) -> None:
    dice = random.Random(seed)
    cases, accepted, slowest, end = 0, 0, 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        write_case(folder, dice)
        began = time.process_time()
        try:
            Manifest.read(folder, SHAPES, LAYERS, ("tiny",))
            accepted += 1
        except Invalid as refusal:
            json.dumps({"detail": refusal.detail, "field": refusal.field}, ensure_ascii=False).encode()
        slowest = max(slowest, time.process_time() - began)
        cases += 1
    peak = own_peak() / 2**20
    sys.stdout.write(json.dumps({"cases": cases, "taken": accepted, "slowest_s": slowest, "peak_mb": peak}) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
