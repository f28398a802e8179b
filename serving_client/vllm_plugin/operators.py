"""vLLM's LoRA operators with row kernels in them, and a pair that works beside the base model's product.

`lora_shrink` and `lora_expand` have the signatures of vLLM's own and take their place. `lora_update_aside` starts on a
second stream and returns at once, so that the base model's product runs meanwhile; `lora_add_joined` waits and adds.
Each runs vLLM's tiles instead where a batch is large or reads prompts. Weights come as vLLM stacks them:
A (slots, 1, rank, in), B (slots, 1, out, rank), one tensor a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.ops.triton_ops.lora_expand_op import _lora_expand as tiles_expand
from vllm.lora.ops.triton_ops.lora_shrink_op import _lora_shrink as tiles_shrink
from vllm.utils.torch_utils import direct_register_custom_op

from serving_client.vllm_plugin import row_kernels
from serving_client.vllm_plugin.slot_ranks import ranks_of

MOST_ROWS = 256
"""Above it a batch may hold so many rows of one adapter that vLLM's tiles are faster."""

_library = torch.library.Library("adapterhub", "FRAGMENT")  # type: ignore[no-untyped-call]
_streams: dict[torch.device, torch.cuda.Stream] = {}
_decodes: dict[int, bool] = {}  # by the address of a batch's slots


def takes_rows(token_lora_mapping: torch.Tensor) -> bool:
    """Return True if row kernels serve this batch: at most MOST_ROWS rows, and by `note_batch` no prompt among them.

    The note is found by the address of `token_lora_mapping` (rows,), whose values are not read; a batch without a note
    counts as one without prompts. A prompt has many rows of one adapter, which is what vLLM's tiles are for.
    """
    return token_lora_mapping.shape[0] <= MOST_ROWS and _decodes.get(token_lora_mapping.data_ptr(), True)


def note_batch(token_lora_mapping: torch.Tensor, *, decodes: bool) -> None:
    """Store `decodes` by the address of a batch's slots, for `takes_rows`.

    It is True if the batch reads no prompt: each of its requests has as many rows as it samples tokens.
    """
    _decodes[token_lora_mapping.data_ptr()] = decodes


def lora_shrink(
    inputs: torch.Tensor,
    lora_a_weights: list[torch.Tensor],
    output_tensor: torch.Tensor,
    token_lora_mapping: torch.Tensor,
    token_indices_sorted_by_lora_ids: torch.Tensor,
    num_tokens_per_lora: torch.Tensor,
    lora_token_start_loc: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
    num_active_loras: torch.Tensor,
    scaling: float,
) -> None:
    """Write each row times its adapter's A times `scaling` to `output_tensor`, as vLLM's operator of this name does.

    Row kernels compute it for decode batches, vLLM's own kernels for others. Nothing is written if no row has an
    adapter.
    """
    if no_lora_flag_cpu.item():
        return
    if takes_rows(token_lora_mapping):
        _shrink_rows(inputs, lora_a_weights, output_tensor, token_lora_mapping, lora_ids, scaling)
    else:
        tiles_shrink(
            inputs,
            lora_a_weights,
            output_tensor,
            token_lora_mapping,
            token_indices_sorted_by_lora_ids,
            num_tokens_per_lora,
            lora_token_start_loc,
            lora_ids,
            no_lora_flag_cpu,
            num_active_loras,
            scaling,
        )


def lora_expand(
    inputs: torch.Tensor,
    lora_b_weights: list[torch.Tensor],
    output_tensor: torch.Tensor,
    token_lora_mapping: torch.Tensor,
    token_indices_sorted_by_lora_ids: torch.Tensor,
    num_tokens_per_lora: torch.Tensor,
    lora_token_start_loc: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
    num_active_loras: torch.Tensor,
    offset_start: int = 0,
    add_inputs: bool = False,
) -> None:
    """Write each row times its adapter's B to `output_tensor`, as vLLM's operator of this name does.

    It goes to the columns from `offset_start` on; with `add_inputs` it is added to what they hold, else it replaces
    that. Row kernels compute it for decode batches, vLLM's own kernels for others. Nothing is written if no row has an
    adapter.
    """
    if no_lora_flag_cpu.item():
        return
    if takes_rows(token_lora_mapping):
        row_kernels.expand(
            inputs,
            _slots(lora_b_weights),
            output_tensor,
            token_lora_mapping,
            active=lora_ids,
            ranks=ranks_of(lora_b_weights),
            start=offset_start,
            adds=add_inputs,
        )
    else:
        tiles_expand(
            inputs,
            lora_b_weights,
            output_tensor,
            token_lora_mapping,
            token_indices_sorted_by_lora_ids,
            num_tokens_per_lora,
            lora_token_start_loc,
            lora_ids,
            no_lora_flag_cpu,
            num_active_loras,
            offset_start,
            add_inputs,
        )


def lora_update_aside(
    inputs: torch.Tensor,
    lora_a_weights: list[torch.Tensor],
    lora_b_weights: list[torch.Tensor],
    token_lora_mapping: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
) -> torch.Tensor:
    """Start computing the adapters' update on a second stream; `lora_add_joined` waits for the returned tensor.

    If no row has an adapter, or `takes_rows` is False for the batch, nothing is computed and the content is undefined.
    """
    update = _room(inputs, lora_a_weights, lora_b_weights)
    if no_lora_flag_cpu.item() or not takes_rows(token_lora_mapping):
        return update
    aside = _stream(inputs.device)
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        inner = _inner(inputs, lora_a_weights)
        _shrink_rows(inputs, lora_a_weights, inner, token_lora_mapping, lora_ids, 1.0)
        row_kernels.expand(
            inner,
            _slots(lora_b_weights),
            update,
            token_lora_mapping,
            active=lora_ids,
            ranks=ranks_of(lora_b_weights),
            adds=False,
        )
    return update


def lora_add_joined(
    update: torch.Tensor,
    output_tensor: torch.Tensor,
    inputs: torch.Tensor,
    lora_a_weights: list[torch.Tensor],
    lora_b_weights: list[torch.Tensor],
    token_lora_mapping: torch.Tensor,
    token_indices_sorted_by_lora_ids: torch.Tensor,
    num_tokens_per_lora: torch.Tensor,
    lora_token_start_loc: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
    num_active_loras: torch.Tensor,
) -> None:
    """Wait for the update that `lora_update_aside` started and add it to `output_tensor`.

    For a batch that is left to vLLM's kernels, compute the update with them instead.
    """
    # The other stream reads `inputs` until here: an argument of this operator is not freed before.
    if no_lora_flag_cpu.item():
        return
    if takes_rows(token_lora_mapping):
        torch.cuda.current_stream().wait_stream(_stream(inputs.device))
        output_tensor.add_(update)
        return
    batch = (
        token_lora_mapping,
        token_indices_sorted_by_lora_ids,
        num_tokens_per_lora,
        lora_token_start_loc,
        lora_ids,
        no_lora_flag_cpu,
        num_active_loras,
    )
    inner = _inner(inputs, lora_a_weights)
    tiles_shrink(inputs, lora_a_weights, inner, *batch, 1.0)
    tiles_expand(inner, lora_b_weights, output_tensor, *batch, 0, True)


def register() -> None:
    """Define the operators as `torch.ops.adapterhub`."""
    for function in (lora_shrink, lora_expand, lora_add_joined):
        direct_register_custom_op(
            function.__name__, function, ["output_tensor"], _changes_in_place, target_lib=_library
        )
    direct_register_custom_op("lora_update_aside", lora_update_aside, [], _room, target_lib=_library)


def _changes_in_place(*_: Any, **__: Any) -> None:
    """Stand in for an operator without a result while the compiler traces."""


def _room(inputs: torch.Tensor, _: list[torch.Tensor], lora_b_weights: list[torch.Tensor], *__: Any) -> torch.Tensor:
    """Return an empty tensor for the update of all outputs, with at most the rows that row kernels take."""
    outputs = sum(weight.shape[-2] for weight in lora_b_weights)
    rows = torch.sym_min(inputs.shape[0], MOST_ROWS)  # type: ignore[no-untyped-call]
    return inputs.new_empty(rows, outputs)


def _inner(inputs: torch.Tensor, lora_a_weights: list[torch.Tensor]) -> torch.Tensor:
    """Room for what shrink gives: (slices, rows, rank)."""
    shape = len(lora_a_weights), inputs.shape[0], lora_a_weights[0].shape[-2]
    return torch.empty(shape, dtype=torch.float32, device=inputs.device)


def _shrink_rows(
    inputs: torch.Tensor,
    weights: list[torch.Tensor],
    output: torch.Tensor,
    slots: torch.Tensor,
    active: torch.Tensor,
    scale: float,
) -> None:
    x = inputs if inputs.stride(-1) == 1 else inputs.contiguous()
    row_kernels.shrink(x, _slots(weights), output, slots, active=active, ranks=ranks_of(weights), scale=scale)


def _slots(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The slices as (slots, ., .); vLLM has a dimension of 1 behind the slots."""
    return [weight.squeeze(1) if weight.ndim == 4 else weight for weight in weights]


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]
