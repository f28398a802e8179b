"""Memory of a training, estimated by formulas from a model's configuration alone. No torch, no database.

The bytes of each parameter follow from what a method keeps: weights, gradients, Adam's two moments (float32 unless
stated). Activations follow Korthikanti et al. (arXiv 2205.05198), with attention that is never materialised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GB = 1e9
CONTEXT_BYTES = 0.8 * GB
FRAGMENTATION = 1.05
NF4_BYTES = 0.5 + (8 / 64 + 32 / 16384) / 8
# Llama's published configurations, to estimate with before a base model is registered.
KNOWN: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
        "num_attention_heads": 32,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3.1-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "vocab_size": 128256,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder: widths in channels, and `modules`, (out, in) of each linear module of a layer by kind.

    `tied` is True if the embedding is also the output head.
    """

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    tied: bool
    modules: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape that a transformers configuration of the Llama kind describes.

        Raises KeyError for a missing field.
        """
        hidden, wide = config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        kv = (config.get("num_key_value_heads") or heads) * head
        shapes = (
            (heads * head, hidden),
            (kv, hidden),
            (kv, hidden),
            (hidden, heads * head),
            (wide, hidden),
            (wide, hidden),
            (hidden, wide),
        )
        return cls(
            hidden,
            wide,
            config["num_hidden_layers"],
            config["vocab_size"],
            bool(config.get("tie_word_embeddings")),
            dict(zip(KINDS, shapes, strict=True)),
        )

    @property
    def linear_parameters(self) -> int:
        """Return the number of parameters in the linear modules of all layers."""
        return self.layers * sum(out * width for out, width in self.modules.values())

    @property
    def embedding_parameters(self) -> int:
        """Return the number of parameters of the embedding, and of the head unless the two are tied."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the whole model."""
        return self.linear_parameters + self.embedding_parameters + self.hidden * (2 * self.layers + 1)

    def adapter_parameters(self, rank: int, kinds: tuple[str, ...] = KINDS) -> int:
        """Return the number of parameters of a LoRA of this rank on these kinds of modules."""
        return rank * self.layers * sum(sum(self.modules[kind]) for kind in kinds)


@dataclass(frozen=True)
class Plan:
    """The training to estimate; `length` is in tokens, and the `devices` hold shards if `sharded`, else copies.

    `kinds` are the modules that get an adapter, whose values take `adapter_bytes` each. `parameters` is the number of
    an adapter's parameters if a plan gives its ranks; 0 means `rank` everywhere. `value_bytes` are those of a weight, a
    gradient or an activation: 2 on a GPU, 4 on a CPU, where training is in float32.
    """

    method: str
    rank: int = 16
    batch_size: int = 1
    length: int = 1024
    recompute: bool = True
    devices: int = 1
    sharded: bool = False
    chunked_loss: bool = True
    galore_rank: int = 128
    adapter_bytes: int = 4
    kinds: tuple[str, ...] = KINDS
    master_weights: bool = False
    value_bytes: int = 2
    parameters: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device: weights, optimiser and gradients, activations, and a kernel's temporary copies.

    `gathered` is the part of sharded weights that is temporarily whole; `logits` are the logits of the loss.
    """

    weights: float
    states: float
    activations: float
    transient: float
    gathered: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        """Return the bytes that the device must have: torch's peak and the driver's context."""
        return self.allocated + CONTEXT_BYTES

    @property
    def allocated(self) -> float:
        """Return the peak bytes that torch reports.

        Fragmentation is added only to memory that is freed in every step.
        """
        return self.weights + self.gathered + self.states + self.moving * FRAGMENTATION

    @property
    def moving(self) -> float:
        """Return the bytes that are allocated and freed in every step."""
        return self.activations + self.logits + self.transient

    def parts(self) -> dict[str, float]:
        """Return the summands of `total` that are not 0, in bytes, by their names for display."""
        named = {
            "weights": self.weights,
            "largest layer, gathered": self.gathered,
            "gradients and optimiser": self.states,
            "activations": self.activations,
            "logits": self.logits,
            "a kernel's copy": self.transient,
            "fragmentation": self.moving * (FRAGMENTATION - 1),
            "driver": CONTEXT_BYTES,
        }
        return {name: size for name, size in named.items() if size}

    def verdict(self, device_bytes: float) -> str:
        """Return `fits`, `tight` (over nine tenths of the device's bytes) or `will not fit`."""
        share = self.total / device_bytes
        return "fits" if share <= 0.9 else "tight" if share <= 1 else "will not fit"


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """Return the estimate of the memory on each device. Raises KeyError for an unknown method."""
    shards = plan.devices if plan.sharded else 1
    weights = weight_bytes(shape, plan)
    gathered = layer_bytes(shape, weights) if shards > 1 else 0.0
    return Estimate(
        weights=weights / shards,
        gathered=gathered,
        states=STATES[plan.method](shape, plan) / shards,
        activations=activation_bytes(shape, plan),
        logits=logit_bytes(shape, plan),
        transient=transient_bytes(shape, plan),
    )


def weight_bytes(shape: Shape, plan: Plan) -> float:
    """Return the bytes of all weights: `value_bytes` each; with QLoRA the linear modules are in NF4."""
    whole = shape.parameters
    if plan.method == "qlora":
        whole -= shape.linear_parameters
        return NF4_BYTES * shape.linear_parameters + plan.value_bytes * whole
    return plan.value_bytes * whole


def layer_bytes(shape: Shape, weights: float) -> float:
    """Return the bytes of the largest part that shards gather at once: a layer, or the embedding in 16 bits.

    `weights` are the bytes of all weights.
    """
    return max(weights / shape.layers, 2 * shape.vocabulary * shape.hidden)


def full_states(shape: Shape, plan: Plan) -> float:
    """Return the bytes of gradients and two moments of all weights.

    With master weights (mixed precision) they include these and the copy in float32.
    """
    return (16 if plan.master_weights else 3 * plan.value_bytes) * shape.parameters


def lora_states(shape: Shape, plan: Plan) -> float:
    """Return the bytes of the adapter's weights, gradients and two moments."""
    return 4 * plan.adapter_bytes * parameters_of(shape, plan)


def parameters_of(shape: Shape, plan: Plan) -> int:
    """Return the number of parameters of the adapter: those of its planned ranks, else of its rank everywhere."""
    return plan.parameters or shape.adapter_parameters(plan.rank, plan.kinds)


def dora_states(shape: Shape, plan: Plan) -> float:
    """Return the bytes of DoRA's weights, gradients and optimiser states."""
    magnitudes = shape.layers * sum(shape.modules[kind][0] for kind in plan.kinds)
    return lora_states(shape, plan) + 16 * magnitudes


def adalora_states(shape: Shape, plan: Plan) -> float:
    """Return AdaLoRA's bytes for the trained parameters: LoRA's and three importance buffers per parameter.

    Before pruning it has 1.5 times the rank's parameters.
    """
    return (4 * plan.adapter_bytes + 12) * 1.5 * parameters_of(shape, plan)


def galore_states(shape: Shape, plan: Plan) -> float:
    """Return GaLore's bytes for training all weights.

    They are gradients, each linear module's projection and its two moments, and Adam's moments for the other weights.
    """
    rank, rest = plan.galore_rank, shape.parameters - shape.linear_parameters
    projected = sum(min(size) * min(rank, *size) + 2 * max(size) * min(rank, *size) for size in shape.modules.values())
    return plan.value_bytes * (shape.parameters + shape.layers * projected + 2 * rest)


STATES = {
    "full": full_states,
    "lora": lora_states,
    "qlora": lora_states,
    "dora": dora_states,
    "adalora": adalora_states,
    "galore": galore_states,
    "dpo": lora_states,
    "kto": lora_states,
    "orpo": lora_states,
}
# Preference methods read two sequences a row. The reference is the model with its adapter off: it adds no weights, and
# its forward pass keeps no activations. KTO reads one, as its mismatched answers and its reference keep none.
SEQUENCES = {"dpo": 2, "orpo": 2}
# TRL's ORPO has the logits of all tokens at once.
WHOLE_LOGITS = ("orpo",)


def tokens_in_batch(plan: Plan) -> int:
    """Return the tokens of a micro-batch whose activations are kept; DPO and ORPO have two sequences for each row."""
    return SEQUENCES.get(plan.method, 1) * plan.batch_size * plan.length


def activation_bytes(shape: Shape, plan: Plan) -> float:
    """Return the bytes kept for the backward pass; with recomputation, layer inputs and one layer's working set."""
    tokens = tokens_in_batch(plan)
    layer = tokens * (34 * shape.hidden + 6 * max(0, shape.intermediate - 4 * shape.hidden // 3))
    values = 2 * shape.layers * tokens * shape.hidden + layer if plan.recompute else shape.layers * layer
    return values * plan.value_bytes / 2


def logit_bytes(shape: Shape, plan: Plan) -> float:
    """Return the bytes of the logits at once, with their float32 copy and its gradient.

    A chunked loss has those of 256 tokens, except with ORPO; otherwise they are those of the whole batch.
    """
    tokens = tokens_in_batch(plan)
    is_chunked = plan.chunked_loss and plan.method not in WHOLE_LOGITS
    return (8 + plan.value_bytes) * (min(tokens, 256) if is_chunked else tokens) * shape.vocabulary


def transient_bytes(shape: Shape, plan: Plan) -> float:
    """Return the bytes of a kernel's largest temporary copy.

    It is a dequantised weight for QLoRA, a whole one for DoRA, and 0 for other methods.
    """
    largest = max(shape.modules.values(), key=math.prod)
    if plan.method == "qlora":
        return plan.value_bytes * math.prod(largest)
    return 4 * largest[1] ** 2 + 4 * math.prod(largest) if plan.method == "dora" else 0.0


def every_method(shape: Shape, plan: Plan) -> dict[str, Estimate]:
    """Return the estimate of every method for the same plan, by the method's name."""
    return {method: estimate(shape, replace(plan, method=method)) for method in STATES}


def largest_batch(shape: Shape, plan: Plan, device_bytes: float) -> int:
    """Return the largest batch size up to 1,024 that fits at the plan's length; 0 if not even one sequence does."""
    batch = 0
    while batch < 1024 and estimate(shape, replace(plan, batch_size=batch + 1)).verdict(device_bytes) == "fits":
        batch += 1
    return batch
