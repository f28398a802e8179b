"""What the plugin expects of the installed vLLM, checked on its real classes without a GPU. Run by vLLM's own Python.

Triton is not installed for the CPU; a stand-in lets the kernels be imported, and none of them runs.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

triton = types.ModuleType("triton")
triton.language = types.ModuleType("triton.language")  # type: ignore[attr-defined]
triton.jit = lambda function: function  # type: ignore[attr-defined]


def signatures(operators: Any) -> None:
    operators.register()
    for name in ("lora_shrink", "lora_expand"):
        own, stock = (getattr(getattr(torch.ops, space), name).default._schema for space in ("adapterhub", "vllm"))
        assert str(own).partition("(")[2] == str(stock).partition("(")[2], f"{own} is not {stock}"


def metadata() -> None:
    """Slots by row, and active ones sorted with at most one -1, so that two entries say whether there is any."""
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

    batch = LoRAKernelMeta.make(3, 16, "cpu")
    batch.prepare_tensors(torch.tensor([2, -1, 0, 2, -1]))
    slots, _, _, _, active, has_none, adapters = batch.meta_args(5, specialize_active_lora=False)
    assert slots.dtype == torch.int32
    assert slots.tolist() == [2, -1, 0, 2, -1]
    assert active.tolist() == [-1, 0, 2, -1]
    assert (has_none.item(), adapters.item()) == (False, 4)
    batch.prepare_tensors(torch.tensor([-1, -1, -1]))
    slots, _, _, _, active, has_none, _ = batch.meta_args(5, specialize_active_lora=False)
    # What the kernels must survive: slots of the batch before, in a batch without adapters.
    assert slots.tolist() == [2, -1, 0, 2, -1]
    assert active.tolist() == [-1] * 4
    assert has_none.item()


def ranks(slot_ranks: Any) -> None:
    """Each slot's own rank, as vLLM fills and clears a module."""
    from vllm.lora.layers import RowParallelLinearWithLoRA
    from vllm.model_executor.layers.linear import RowParallelLinear

    slot_ranks.follow_ranks()
    layer = RowParallelLinearWithLoRA.__new__(RowParallelLinearWithLoRA)
    torch.nn.Module.__init__(layer)
    layer.base_layer = RowParallelLinear.__new__(RowParallelLinear)
    torch.nn.Module.__init__(layer.base_layer)
    layer.input_size, layer.output_size, layer.n_slices, layer.tp_size = 6, 4, 1, 1
    layer.device = torch.device("cpu")
    config = types.SimpleNamespace(max_lora_rank=8, fully_sharded_loras=False, lora_dtype=torch.float32)
    layer.create_lora_weights(3, config)
    layer.set_lora(1, torch.ones(2, 6), torch.ones(4, 2))
    layer.set_lora(2, torch.ones(8, 6), torch.ones(4, 8))
    layer.reset_lora(2)
    for weights in (layer.lora_a_stacked, layer.lora_b_stacked):
        assert slot_ranks.ranks_of(weights).tolist() == [[0, 2, 0]]


def layers(linear: Any) -> None:
    from vllm.lora.layers import RowParallelLinearWithLoRA, RowParallelLinearWithShardedLoRA

    sharded = RowParallelLinearWithShardedLoRA.apply
    linear.replace_apply()
    assert RowParallelLinearWithLoRA.apply.__wrapped__ is not None
    assert RowParallelLinearWithShardedLoRA.apply is sharded


def lookups(adapters_in_use: Any) -> None:
    """A step with the adapters of the step before looks none of them up, unless another was loaded or one is gone."""
    from vllm.lora import model_manager, worker_manager
    from vllm.lora.request import LoRARequest

    manager = model_manager.LRUCacheLoRAModelManager.__new__(model_manager.LRUCacheLoRAModelManager)
    manager.lora_config = types.SimpleNamespace(max_cpu_loras=4, max_loras=4)
    manager.lora_index_to_id, manager.modules = [None] * 4, {}
    cache = getattr(model_manager, "AdapterLRUCache", None) or model_manager.LoRALRUCache
    manager._registered_adapters = cache(4, manager.deactivate_adapter)
    manager._active_adapters = cache(4, manager._deactivate_adapter)
    for number in (1, 2, 3):
        manager._registered_adapters[number] = types.SimpleNamespace(id=number)
    calls: list[int] = []
    adapters_in_use.skip_repeated_lookups()
    worker = worker_manager.LRUCacheWorkerLoRAManager.__new__(worker_manager.LRUCacheWorkerLoRAManager)
    worker._adapter_manager = manager
    add = worker.add_adapter
    worker.add_adapter = lambda request: (calls.append(request.lora_int_id), add(request))
    requests = {LoRARequest(f"adapter-{number}", number, "/nowhere") for number in (1, 2)}

    def looked_up() -> list[int]:
        calls.clear()
        worker._apply_adapters(requests)
        return sorted(calls)

    assert looked_up() == [1, 2]
    assert looked_up() == []
    manager.activate_adapter(3)
    assert looked_up() == [1, 2]
    assert looked_up() == []
    manager.deactivate_adapter(2)
    assert looked_up() == [1, 2]


def cache_key(registration: Any) -> None:
    from vllm import envs

    before = envs.compile_factors()
    registration.mark_compile_cache()
    assert envs.compile_factors() == before | {"adapterhub-vllm": "0.1.0"}


def main() -> None:
    from serving_client.vllm_plugin import registration

    assert registration.unfit_machine() == "there is no CUDA GPU"
    assert registration.changed_code() is None
    sys.modules |= {"triton": triton, "triton.language": triton.language}
    from serving_client.vllm_plugin import adapters_in_use, linear, operators, slot_ranks

    signatures(operators)
    metadata()
    ranks(slot_ranks)
    layers(linear)
    lookups(adapters_in_use)
    cache_key(registration)


if __name__ == "__main__":
    main()
