"""Convert an adapter that engines cannot serve to the nearest plain LoRA: `python -m training.recipes.output.reduce`.

PEFT computes the adapter's change of each linear module's weight, and the change is cut to its leading singular values.
Changes of anything else (embeddings, output head, norms) are left out, and the report names them. With --data the
held-out loss is measured before and after; with --merged the whole model with the adapter merged into it is written,
too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.lm.base_model import load_named, load_tokenizer, sequences_of
from training.lm.error_reporting import BadInput, guarded
from training.lm.evaluation import held_out_loss, held_out_sample
from training.lm.events import Events

PREFIX = "base_model.model."
# The modules that engines adapt; the same names as in the registry's check.
LINEAR = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(?:[qkvo]|gate|up|down)_proj")
# Singular values below this share of the highest one are rounding.
NOISE = 1e-6
# A larger matrix is decomposed by random projections, whose error is part of what is measured.
EXACT_SIDE, OVERSAMPLED, ITERATIONS = 1024, 32, 6
# Relative error of the merged model's logits against PEFT's.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass
class Reduced:
    """A reduced adapter: its factors and the measure of its error.

    `factors` has (A, B) by module at scale 1; `energy` and `missed` are the squared norms of the changes and of the
    part that was cut off; `left_out` names the adapted modules that are not in it.
    """

    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    energy: float = 0.0
    missed: float = 0.0
    left_out: list[str] = field(default_factory=list)

    def take(self, name: str, change: Tensor, rank: int) -> None:
        """Add a linear module's change of weight, cut to at most this rank, and count what the cut loses.

        A change that is zero gives no factors.
        """
        a, b = leading(change, rank)
        self.energy += float(change.square().sum(dtype=torch.float64))
        self.missed += float((change - b @ a).square().sum(dtype=torch.float64))
        if a.shape[0]:
            self.factors[name] = (a.float().cpu().contiguous(), b.float().cpu().contiguous())

    @property
    def error(self) -> float:
        """Return the relative error over all linear modules, in the Frobenius norm; 0 if nothing changed."""
        return (self.missed / self.energy) ** 0.5 if self.energy else 0.0


def main(arguments: list[str]) -> int:
    """Convert the adapter that the arguments name.

    Return the exit status: 0, 2 for bad input, 1 for any other error.
    """
    options = parse(arguments)
    events = Events(options.events)
    return guarded(events, lambda: run(options, events))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; exits with status 2 and a usage message for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m training.recipes.output.reduce", description=__doc__)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter that PEFT opens")
    parser.add_argument("--model", required=True, help="folder of its base model")
    parser.add_argument("--rank", type=int, required=True, help="highest rank of a module")
    parser.add_argument("--data", type=Path, help="held-out text, to measure the loss before and after")
    for name, value in {"max-length": 256, "eval-tokens": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--merged", type=Path, help="folder for the whole model with the adapter merged into it")
    parser.add_argument("--events", type=Path, help="append progress as JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the plain LoRA; it must not exist")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, events: Events) -> None:
    """Reduce the adapter, write the LoRA to `out` and a report to `out`.json.

    With `data` the report has the held-out losses; with `merged` the merged model is written, too. Raises BadInput if
    the model or the adapter cannot be opened, the adapter changes no linear module, the data cannot be read, or the
    merged model does not compute the same.
    """
    tokenizer, model = load_named(options.model, "--model")
    adapted = opened(model, options.adapter)
    reduced = reduce(adapted, options.rank, events)
    reduced.left_out = list(dict.fromkeys([*reduced.left_out, *biases_in(options.adapter)]))
    if not reduced.factors:
        raise BadInput("--adapter: it changes no linear module, so that no LoRA comes near it: use its merged model.")
    write_adapter(reduced, options.out)
    report = report_of(reduced)
    sample = None
    if options.data:
        rows = sequences_of(options.data, "--data", tokenizer, options.max_length)
        sample = held_out_sample(rows, options.eval_tokens, 0)
        report |= measured(adapted, sample, tokenizer.pad_token_id, "before", events)
    if options.merged:
        merge(options, adapted)
    if sample:
        del adapted, model
        served = opened(load_named(options.model, "--model")[1], options.out)
        report |= measured(served, sample, tokenizer.pad_token_id, "after", events)
    options.out.with_name(options.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")


def opened(model: Any, folder: Path) -> Any:
    """Load the adapter in the folder onto the model, for evaluation. Raises BadInput if PEFT cannot."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(f"--adapter: PEFT cannot open it: {str(error).strip().splitlines()[0][:300]}") from None


def reduce(adapted: Any, rank: int, events: Events) -> Reduced:
    """Return the adapter with the change of every linear module cut to at most this rank.

    Adapted modules of other kinds are named in `left_out`. Progress is written as events.
    """
    layers = dict(adapted_layers(adapted))
    reduced = Reduced()
    with torch.no_grad():
        for step, (name, layer) in enumerate(layers.items(), 1):
            for changed, change in changes_of(name, layer):
                if LINEAR.fullmatch(changed):
                    reduced.take(changed, change, rank)
                else:
                    reduced.left_out.append(changed)
            events.write("progress", step=step, total=len(layers))
    return reduced


def changes_of(name: str, layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, change) for everything in the base model that an adapted layer changes.

    The change is a tensor (out, in) for a module whose name LINEAR matches, and None for anything else, such as an
    embedding or a bias, which is named `module.bias`. `name` is the layer's name in the base model.
    """
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        yield from whole_changes(name, layer)
        return
    yield name, change_of(layer) if LINEAR.fullmatch(name) else None
    factor = layer.lora_B["default"] if "default" in getattr(layer, "lora_B", {}) else None
    bias = getattr(factor, "bias", None)
    if bias is not None and bool(bias.any()):
        yield f"{name}.bias", None


def whole_changes(name: str, layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, change) for each weight of a layer that was saved whole and differs from the base model's.

    The change is None unless LINEAR matches the name.
    """
    before = dict(layer.original_module.named_parameters())
    for parameter, trained in layer.modules_to_save["default"].named_parameters():
        change = trained.detach().float() - before[parameter].detach().float()
        if bool(change.any()):
            module = f"{name}.{parameter}".removesuffix(".weight")
            yield module, change if LINEAR.fullmatch(module) else None


def adapted_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name in the base model, layer) for each layer that the adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, layer in adapted.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield name, layer


def change_of(layer: Any) -> Tensor:
    """Return an adapted linear module's change of weight, (out, in) in float32.

    It is PEFT's delta, with the scaling of IA3 and the magnitude vector of DoRA taken into account.
    """
    weight: Tensor = layer.get_base_layer().weight.detach().float()
    if "default" in getattr(layer, "ia3_l", {}):
        scaling: Tensor = layer.ia3_l["default"].float()
        return weight * scaling.reshape((1, -1) if layer.is_feedforward else (-1, 1)) - weight
    change: Tensor = layer.get_delta_weight("default").float()
    if "default" in getattr(layer, "lora_magnitude_vector", {}):
        magnitude: Tensor = layer.lora_magnitude_vector["default"].weight.float()
        turned = weight + change
        served: Tensor = turned * (magnitude / turned.norm(dim=1))[:, None]
        return served - weight
    return change


def leading(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return balanced factors A (r, in) and B (out, r) of the nearest matrix of at most this rank.

    Singular values that are rounding errors are dropped, so r may be 0. A large matrix is decomposed by random
    projections.
    """
    if min(change.shape) <= EXACT_SIDE:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, min(rank + OVERSAMPLED, *change.shape), niter=ITERATIONS)
        vh = v.T
    count = min(rank, int((s > NOISE * s[0]).sum())) if len(s) and s[0] > 0 else 0
    root = s[:count].sqrt()
    return root[:, None] * vh[:count], u[:, :count] * root


def write_adapter(reduced: Reduced, out: Path) -> None:
    """Write the reduced adapter as PEFT's two files to the folder `out`, in one step; it must not exist.

    Alpha equals r in every module.
    """
    from safetensors.torch import save_file

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    ranks = {name: a.shape[0] for name, (a, _) in reduced.factors.items()}
    highest = max(ranks.values())
    pattern = {"^" + re.escape(name): rank for name, rank in ranks.items() if rank != highest}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": highest,
        "lora_alpha": highest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{name}.lora_{side}.weight": factor
        for name, pair in reduced.factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
    (part / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    part.rename(out)


def biases_in(folder: Path) -> list[str]:
    """Return the names of the base model's biases that the adapter's file holds, which no LoRA changes."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.endswith(".bias") and ".lora_" not in name]  # noqa: SIM118
    return [name.removeprefix(PREFIX).replace(".base_layer", "") for name in names]


def report_of(reduced: Reduced) -> dict[str, Any]:
    """Return the report's facts that need no data.

    They are the parameters, the error, the share of the energy that is kept, and the left-out modules.
    """
    return {
        "parameters": sum(a.numel() + b.numel() for a, b in reduced.factors.values()),
        "reconstruction_error": reduced.error,
        "energy_kept": round(1 - reduced.missed / reduced.energy, 6) if reduced.energy else 0.0,
        "left_out": reduced.left_out,
    }


def measured(model: Any, sample: Any, pad: int, when: str, events: Events) -> dict[str, Any]:
    """Return {loss_before or loss_after, tokens, rows}: the model's held-out loss, in nats per token.

    `when` is "before" or "after"; before, the base model's loss without the adapter is added as `loss_base`. The loss
    is also written as an event.
    """
    loss = held_out_loss(model, sample, pad)
    events.write("evaluation", when=when, loss=loss.loss, tokens=loss.tokens, rows=loss.rows)
    facts: dict[str, Any] = {f"loss_{when}": loss.loss, "tokens": loss.tokens, "rows": loss.rows}
    if when == "before":
        with model.disable_adapter():
            facts["loss_base"] = held_out_loss(model, sample, pad).loss
    return facts


def merge(options: argparse.Namespace, adapted: Any) -> None:
    """Merge the adapter into the model, in place, and write it with the tokenizer to the folder `merged`.

    It is written in the base model's dtype. Raises BadInput if PEFT cannot merge it, or if the merged model's logits
    for fixed tokens differ too much from those of the model with the adapter.
    """
    named = json.loads((Path(options.model) / "config.json").read_bytes())
    dtype = getattr(torch, str(named.get("dtype") or named.get("torch_dtype") or "float32"))
    expected = logits_of(adapted)
    whole = merged_model(adapted).to(dtype)
    error = float((logits_of(whole) - expected).norm() / expected.norm())
    if not error <= TOLERANCES.get(dtype, 2e-2):
        raise BadInput(f"--merged: the merged model's logits differ from PEFT's by {error:.1e}.")
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    if head is not None and not torch.equal(head.weight, embedding.weight):
        # A head that was trained apart would be saved as the embedding.
        whole.config.tie_word_embeddings = False
    part = options.merged.with_name(options.merged.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    whole.save_pretrained(str(part))
    load_tokenizer(Path(options.model)).save_pretrained(str(part))
    part.rename(options.merged)


def merged_model(adapted: Any) -> Any:
    """Return the base model with the adapter merged into it. Raises BadInput if PEFT cannot merge it."""
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise BadInput(f"--merged: PEFT cannot merge it: {reason} Reduce it without the merged model.") from None


def logits_of(model: Any) -> Tensor:
    """Return the model's logits for a fixed sequence of random tokens, in float32."""
    tokens = torch.randint(model.config.vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=tokens.to(next(model.parameters()).device)).logits).float()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
