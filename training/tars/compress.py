"""Make a trained adapter smaller: `python -m training.tars compress --adapter DIR --budget uniform:8 --out DIR`.

The update of each module, scale * B A, is cut to its leading singular values. One exact allocation over all modules
decides how many each module keeps, so that the least energy is lost for the budget. The result is still a PEFT LoRA
adapter with one effective scale. With --model and --data the loss before and after is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.lm.error_reporting import BadInput, guarded
from training.lm.events import Events
from training.tars import allocation
from training.tars.allocation import Bounds
from training.tars.command_support import atomically, budget, named
from training.tars.presets import Settings

PREFIX = "base_model.model."
# Energy: the sum of squares is what a cut of the singular values loses.
ENERGY = Settings("spectrum", "none", "concave", power=2.0, rank_min=0)


@dataclass(frozen=True)
class Update:
    """A module's weight update as U diag(s) V', with s descending: `left` is U, `values` s, `right` V'."""

    left: Tensor  # (out, r)
    values: Tensor  # (r,)
    right: Tensor  # (r, in)

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scale: float) -> Update:
        """Return the decomposition of scale * B A, with A (r, in) and B (out, r).

        It is computed by an SVD of the factors' QR triangles.
        """
        (left, upper), (right, lower) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
        u, values, v = torch.linalg.svd(scale * upper @ lower.T)
        return cls(left @ u, values, v @ right.T)

    @property
    def shape(self) -> list[int]:
        """Return [out, in]."""
        return [self.left.shape[0], self.right.shape[1]]

    def factors(self, rank: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return (A, B) in float32 of the `rank` leading directions, balanced in size.

        scale * B A is the update cut to them.
        """
        root = (self.values[:rank] / scale).sqrt()
        return (root[:, None] * self.right[:rank]).float(), (self.left[:, :rank] * root).float()


@dataclass(frozen=True)
class Compressed:
    """A compressed adapter: (A, B) by module name, its plan's fields, and the share of squared singular values kept."""

    factors: dict[str, tuple[Tensor, Tensor]]
    fields: dict[str, Any]
    energy: float


def compress(updates: Mapping[str, Update], kind: str, value: int, bounds: Bounds, scale: float) -> Compressed:
    """Return the adapter within the budget that keeps the most energy (sum of squared singular values).

    Raises AllocationError for a budget that the bounds cannot meet.
    """
    energies = {name: float(update.values.square().sum()) for name, update in updates.items()}
    modules: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": update.shape,
            "score": energies[name],
            "weight": 1.0,
            "spectrum": update.values.tolist(),
        }
        for name, update in updates.items()
    ]
    fields = allocation.plan_fields(modules, ENERGY, kind, value, bounds, scale)
    ranks = {module["name"]: module["rank"] for module in fields["modules"]}
    kept_energy = sum(float(update.values[: ranks[name]].square().sum()) for name, update in updates.items())
    factors = {name: update.factors(ranks[name], scale) for name, update in updates.items() if ranks[name]}
    return Compressed(factors, fields, kept_energy / (sum(energies.values()) or 1.0))


def read_adapter(folder: Path) -> tuple[dict[str, Update], dict[str, Any]]:
    """Return an adapter's updates by module name, and its adapter_config. Raises BadInput unless it is a plain LoRA."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"--adapter: {folder} is not a PEFT adapter: {error}") from None
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise BadInput("--adapter: only a plain LoRA adapter can be compressed; convert this one to LoRA first.")
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name, _, side = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        factors.setdefault(name, {})[side] = tensor
    scales = {name: scale_of(name, pair, config) for name, pair in factors.items()}
    return {name: Update.of(pair["A"], pair["B"], scales[name]) for name, pair in sorted(factors.items())}, config


def scale_of(name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """Return PEFT's scale of a module: alpha / r, or alpha / sqrt(r) with rsLoRA.

    Raises BadInput without both A and B.
    """
    if set(pair) != {"A", "B"}:
        raise BadInput(f"--adapter: {name} has no pair of lora_A and lora_B.")
    rank = pair["A"].shape[0]
    alpha = next(
        (value for key, value in (config.get("alpha_pattern") or {}).items() if matches(key, name)),
        config["lora_alpha"],
    )
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def matches(key: str, name: str) -> bool:
    """Return True if a PEFT pattern's key, a regular expression, matches the name or its end after a dot."""
    import re

    return re.match(rf"(.*\.)?({key})$", name) is not None


def write_adapter(compressed: Compressed, config: Mapping[str, Any], out: Path) -> None:
    """Write the smaller adapter's two files to the folder `out`, which appears when they are complete.

    It must not exist. `config` is the configuration of the old adapter, whose other fields are kept.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {}
    for name, (a, b) in compressed.factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = (
            a.contiguous(),
            b.contiguous(),
        )
    save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
    names = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    changed = {**config, **{name: compressed.fields[name] for name in names}, "use_rslora": False}
    (part / "adapter_config.json").write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n")
    part.rename(out)


def main(arguments: list[str]) -> int:
    """Compress the adapter that the arguments name.

    Return the exit status: 0, 2 for bad input, 1 for any other error.
    """
    options = parse(arguments)
    events = Events(options.events)
    return guarded(events, lambda: run(options, events))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line; exits with status 2 and a usage message for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m training.tars compress", description=__doc__)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a PEFT LoRA adapter")
    parser.add_argument("--budget", type=budget, required=True, help="uniform:RANK, params:N or bytes:N")
    parser.add_argument("--model", help="base model, to measure the loss before and after")
    parser.add_argument("--data", type=Path, help="held-out text for that")
    for name, value in {"rank-min": 0, "rank-max": 512, "quantum": 1, "max-length": 256, "batch-size": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    parser.add_argument("--events", type=Path, help="append progress as JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the smaller adapter; it must not exist")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, events: Events) -> None:
    """Compress the adapter into the folder `out`, write a report to `out`.json, and print it.

    The report has the parameters before and after, the share of energy kept, and the losses if a model is named. Raises
    BadInput if `out` exists, only one of model and data is given or they cannot be read, the adapter is not a plain
    LoRA, or the budget cannot be met.
    """
    if options.out.exists():
        raise BadInput(f"--out: {options.out} already exists: remove it, or name another folder.")
    if bool(options.model) != bool(options.data):
        raise BadInput("--data: the loss needs both --model and --data: give both or neither.")
    updates, config = read_adapter(options.adapter)
    # No module can keep more directions than it has.
    highest = min(options.rank_max, max(len(update.values) for update in updates.values()))
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    with named("--budget"):
        kind, value = options.budget
        compressed = compress(updates, kind, value, Bounds(options.rank_min, highest, options.quantum), scale)
    before = sum(len(update.values) * sum(update.shape) for update in updates.values())
    report = {
        "parameters_before": before,
        "parameters": compressed.fields["parameters"],
        "energy_kept": round(compressed.energy, 6),
    }
    write_adapter(compressed, config, options.out)
    if options.model:
        report |= losses(options, events)
    atomically(options.out.with_name(options.out.name + ".json"), (json.dumps(report, indent=1) + "\n").encode())
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def losses(options: argparse.Namespace, events: Events) -> dict[str, float]:
    """Return loss_before and loss_after in nats per token on held-out data, with the numbers of tokens and rows.

    Each measurement is also written as an event. Raises BadInput if the model or the data cannot be read.
    """
    from peft import PeftModel

    from training.lm.base_model import load_named, sequences_of
    from training.lm.evaluation import held_out_loss, held_out_sample

    tokenizer, model = load_named(options.model, "--model")
    rows = sequences_of(options.data, "--data", tokenizer, options.max_length)
    sequences = held_out_sample(rows, options.eval_tokens, 0)
    measured_losses = {}
    for when, folder in (("before", options.adapter), ("after", options.out)):
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        measured = held_out_loss(adapted, sequences, tokenizer.pad_token_id)
        measured_losses[f"loss_{when}"], measured_losses["tokens"] = measured.loss, measured.tokens
        measured_losses["rows"] = measured.rows
        events.write("evaluation", when=when, loss=measured.loss, tokens=measured.tokens, rows=measured.rows)
        model = adapted.unload()
    return measured_losses
