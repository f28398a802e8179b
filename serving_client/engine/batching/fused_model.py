"""Decoding step of a Llama-shaped model in few kernels, in place of the forward pass that transformers offers.

A step of few rows is limited by reading the weights once and by the number of kernels. transformers launches some forty
kernels a layer, copies keys and values for each query head, and reads them to the longest row's end; this takes nine
and reads what a row attends to. A model qualifies by its modules' names and by computing what transformers computes,
which is tried on random tokens when the engine starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from serving_client.engine.adapters.fused_linear import JoinedLinear, can_join
from serving_client.engine.adapters.lora import LoraLinear
from serving_client.engine.batching.kv_cache import RowCache
from serving_client.engine.kernels.decode import add_norm, attend, gate, rotate_and_store

log = logging.getLogger(__name__)

# Of logits to those of transformers, as a share of their norm: rounding stays below, another computation far above.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
# The rotations whose angles depend on the position alone.
FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}


class Unsupported(Exception):
    """Raised when a model is not of the shape that the kernels compute, or its logits come out different."""


class _Layer:
    """The parts of a decoder layer."""

    def __init__(self, layer: nn.Module) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        gates = [mlp.gate_proj, mlp.up_proj]
        groups = [projections, [attention.o_proj], gates, [mlp.down_proj]]
        if not all(isinstance(module, LoraLinear) for group in groups for module in group):
            raise Unsupported("its projections are no plain linear modules")
        if not all(can_join(group) for group in groups):
            raise Unsupported("its projections cannot be joined")
        self.qkv, self.out, self.gates, self.down = map(JoinedLinear, groups)
        self.query_width: int = attention.q_proj.out_features
        self.key_width: int = attention.k_proj.out_features
        self.scaling: float = attention.scaling
        self.norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        has_head_norms = getattr(attention, "q_norm", None) is not None
        self.head_norms: tuple[Any, ...] = (attention.q_norm, attention.k_norm) if has_head_norms else ()


class FusedModel:
    """A model whose decoding steps take nine kernels a layer, and two more for each product with adapters.

    Making one moves the weights of several linear modules into common tensors.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Join the model's weights. Raises Unsupported; what was joined until then computes as before."""
        decoder: Any = getattr(model, "model", None)
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        config = model.config.get_text_config()
        rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        if decoder is None or rotation not in FIXED_ROTATIONS or not isinstance(head, nn.Linear):
            raise Unsupported(f"it is a {type(model).__name__} with rotation '{rotation}'")
        try:
            self._layers = [_Layer(layer) for layer in decoder.layers]
            self._last_norm = _norm(decoder.norm)
            self._embedding: Callable[..., torch.Tensor] = decoder.embed_tokens
            self._angles: Callable[..., tuple[torch.Tensor, torch.Tensor]] = decoder.rotary_emb
        except AttributeError as error:
            raise Unsupported(f"{error.name} is missing") from error
        self._head = head

    def logits(
        self,
        cache: RowCache,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor | None,
        length: int,
    ) -> torch.Tensor:
        """Add the tokens (rows,) at their positions to the first rows of the cache; return logits (rows, vocabulary).

        `slots` (rows,) holds the adapter slot of each row, -1 for none; None means that no row has one. The cache must
        have room for `length` positions, which none of the rows exceeds.
        """
        x = self._embedding(tokens)
        cos, sin = (angles[0].contiguous() for angles in self._angles(x[None], position_ids=positions[None]))
        residual = torch.empty_like(x)
        adds = False
        for layer, (keys, values) in zip(self._layers, cache.memory(), strict=True):
            qkv = layer.qkv(add_norm(x, residual, *layer.norms[0], adds=adds), slots)
            _normalise_heads(qkv, layer)
            rotate_and_store(qkv, cos, sin, positions, keys, values)
            mixed = attend(qkv[:, : layer.query_width], keys, values, positions, layer.scaling, length)
            x = layer.out(mixed, slots)
            x = layer.down(gate(layer.gates(add_norm(x, residual, *layer.norms[1]), slots)), slots)
            adds = True
        answer: torch.Tensor = self._head(add_norm(x, residual, *self._last_norm))
        return answer.float()


def _normalise_heads(qkv: torch.Tensor, layer: _Layer) -> None:
    begin = 0
    for norm, width in zip(layer.head_norms, (layer.query_width, layer.key_width), strict=False):
        part = qkv[:, begin : begin + width]
        heads = part.view(len(qkv), -1, norm.weight.numel())
        heads.copy_(norm(heads))
        begin += width


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    if getattr(module, "bias", None) is not None:
        raise Unsupported("its norms have a bias")
    return module.weight, module.variance_epsilon


@torch.inference_mode()
def fused(model: PreTrainedModel) -> FusedModel | None:
    """Return the model with fused decoding steps; its linear modules must be LoraLinears.

    It is tried on random tokens first. Returns None, with a warning in the log, if the model has another structure or
    its fused logits differ from those of transformers.
    """
    try:
        candidate = FusedModel(model)
        difference = _difference(model, candidate)
        if not difference <= TOLERANCES[model.dtype]:
            raise Unsupported(f"its logits differ by {difference:.3g} of their norm")
    except Unsupported as reason:
        log.warning("Decoding steps of this model run through transformers, which takes longer: %s", reason)
        return None
    return candidate


def _difference(model: PreTrainedModel, candidate: FusedModel) -> float:
    """Return the norm of the difference of both logits of a second token, as a share of the norm of transformers'."""
    vocabulary = model.config.get_text_config().vocab_size
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (2, 3), generator=source).to(model.device)
    first, second = tokens[:, :2], tokens[:, 2]
    positions = torch.full_like(second, 2)
    answers = []
    for is_fused in (False, True):
        cache = RowCache(model.config.get_text_config().num_hidden_layers)
        cache.start(0, len(first), 2)
        model(input_ids=first, past_key_values=cache, use_cache=True)
        cache.reserve(len(first), 3)
        if is_fused:
            answers.append(candidate.logits(cache, second, positions, None, 3))
        else:
            cache.extend(positions, 3)
            answer = model(
                input_ids=second[:, None], position_ids=positions[:, None], past_key_values=cache, use_cache=True
            )
            answers.append(answer.logits[:, -1].float())
    expected, actual = answers
    return float((actual - expected).norm() / expected.norm())
