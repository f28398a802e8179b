"""Many LoRA runs on one Llama at once: the base weights are shared, each arm has its own data, ranks, rate and seed.

One pass of a small model leaves a GPU idle between kernels. Arms that share the base fill it, and their gradients do
not touch: the loss of an arm depends on its own adapter alone. Ranks are padded with zero rows, which stay zero under
Adam, so arms of different ranks are exact. tests/tars/test_side_by_side.py holds this against PEFT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HOME = {kind: "mlp" if kind in KINDS[4:] else "self_attn" for kind in KINDS}
# Logits of this many tokens exist at a time.
CHUNK = 8192

Weights = dict[str, Tensor]
Step = Callable[..., Any]


def module_name(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{HOME[kind]}.{kind}"


@dataclass
class Base:
    """Frozen weights by kind, stacked over layers where that saves nothing but names."""

    layers: list[Weights]
    embedding: Tensor  # (V, H)
    final_norm: Tensor  # (H,)
    heads: int
    kv_heads: int
    epsilon: float
    theta: float

    @classmethod
    def of(cls, model: Any) -> Base:
        """The weights of a transformers Llama with tied embeddings."""
        config, layers = model.config, []
        for layer in model.model.layers:
            parts = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
            norms = {"before": layer.input_layernorm.weight, "after": layer.post_attention_layernorm.weight}
            weights = {kind: parts[kind].weight for kind in KINDS} | norms
            layers.append({name: weight.detach() for name, weight in weights.items()})
        theta = config.rope_parameters["rope_theta"]
        return cls(
            layers,
            model.model.embed_tokens.weight.detach(),
            model.model.norm.weight.detach(),
            config.num_attention_heads,
            config.num_key_value_heads,
            config.rms_norm_eps,
            theta,
        )

    def shape(self, kind: str) -> tuple[int, int]:
        out, width = self.layers[0][kind].shape
        return out, width

    def rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding. (T, head)"""
        head = self.layers[0]["q_proj"].shape[0] // self.heads
        device = self.embedding.device
        inverse = 1.0 / self.theta ** (torch.arange(0, head, 2, device=device).float() / head)
        angles = torch.outer(torch.arange(length, device=device).float(), inverse).repeat(1, 2)
        return angles.cos().to(self.embedding.dtype), angles.sin().to(self.embedding.dtype)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def adapted(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, gain: Tensor | None) -> Tensor:
    """x W' + scale * x A' B, times DoRA's gain a channel. (N, M, k), (o, k), (N, R, k), (N, R, o) -> (N, M, o)"""
    out = torch.baddbmm(functional.linear(x, weight), torch.bmm(x, a.mT), b, alpha=scale)
    return out if gain is None else out * gain


def layer_step(
    x: Tensor,
    weights: Weights,
    a: Weights,
    b: Weights,
    gains: Weights | None,
    scale: float,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    epsilon: float,
    length: int,
) -> Tensor:
    """One decoder layer over N arms. (N, M, H) with M = batch * length"""
    arms, tokens, _width = x.shape

    def project(kind: str, inputs: Tensor) -> Tensor:
        return adapted(inputs, weights[kind], a[kind], b[kind], scale, None if gains is None else gains[kind])

    def split(y: Tensor, count: int) -> Tensor:
        return y.view(arms * tokens // length, length, count, -1).transpose(1, 2)

    inputs = rms_norm(x, weights["before"], epsilon)
    query = rotated(split(project("q_proj", inputs), heads), cos, sin)
    key = rotated(split(project("k_proj", inputs), kv_heads), cos, sin)
    value = split(project("v_proj", inputs), kv_heads)
    key, value = (part.repeat_interleave(heads // kv_heads, 1) for part in (key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + project("o_proj", mixed.transpose(1, 2).reshape(arms, tokens, -1))
    inputs = rms_norm(x, weights["after"], epsilon)
    inner = functional.silu(project("gate_proj", inputs)) * project("up_proj", inputs)
    return x + project("down_proj", inner)


class TokenLosses(torch.autograd.Function):
    """Cross entropy of each token under a frozen head; the gradient is formed with the logits, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, of_chunk: Step) -> Tensor:
        losses, gradient = torch.empty(targets.shape, device=hidden.device), torch.empty_like(hidden)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            losses[part], gradient[part] = of_chunk(hidden[part], head, targets[part])
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(1).to(gradient.dtype), None, None, None


def chunk_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """((C,) losses in nats, (C, H) their gradients)"""
    logits = (hidden @ head.T).float()
    log_total = logits.logsumexp(1)
    losses = log_total - logits.gather(1, targets[:, None]).squeeze(1)
    hit = torch.arange(head.shape[0], device=head.device) == targets[:, None]
    return losses, ((logits - log_total[:, None]).exp() - hit.float()).to(hidden.dtype) @ head


class Stack:
    """The base with N adapters: forward over (N, B, T) tokens to the loss of each token."""

    def __init__(self, base: Base, scale: float, length: int, *, compiled: bool) -> None:
        self.base, self.scale, self.length = base, scale, length
        self.cos, self.sin = base.rotation(length)
        self.step: Step = torch.compile(layer_step, dynamic=False) if compiled else layer_step
        self.of_chunk: Step = torch.compile(chunk_losses, dynamic=False) if compiled else chunk_losses

    def losses(self, ids: Tensor, a: Weights, b: Weights, gains: list[Weights] | None = None) -> Tensor:
        """Loss of each predicted token. (N, B, T + 1) ids -> (N, B, T). `a`, `b`: (L, N, R, k), (L, N, R, o) by kind"""
        arms, batch, _ = ids.shape
        dtype, base = self.base.embedding.dtype, self.base
        # The backward of unbind is one stack a kind; slices would each bring a gradient of the whole.
        layers_a = {kind: value.to(dtype).unbind(0) for kind, value in a.items()}
        layers_b = {kind: value.to(dtype).unbind(0) for kind, value in b.items()}
        x = functional.embedding(ids[..., :-1], base.embedding).view(arms, batch * self.length, -1)
        for index, weights in enumerate(base.layers):
            x = self.step(
                x,
                weights,
                {kind: layers_a[kind][index] for kind in a},
                {kind: layers_b[kind][index] for kind in b},
                None if gains is None else gains[index],
                self.scale,
                self.cos,
                self.sin,
                base.heads,
                base.kv_heads,
                base.epsilon,
                self.length,
            )
        x = rms_norm(x, base.final_norm, base.epsilon).view(-1, x.shape[-1])
        targets = ids[..., 1:].reshape(-1)
        return TokenLosses.apply(x, base.embedding, targets, self.of_chunk).view(arms, batch, -1)  # type: ignore[no-any-return,no-untyped-call]
