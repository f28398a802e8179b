"""On a GPU: recorded steps answer as steps that are computed anew. Runs where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from serving_client.engine.adapters.adapter import Adapter, LowRank
from serving_client.engine.adapters.lora import row_kernel, wrap_linears
from serving_client.engine.batching import batch as batches
from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.batching.sampling import SamplingParams
from serving_client.engine.batching.sequence import Sequence
from tests.tools import requires

if TYPE_CHECKING:
    from serving_client.engine.engine import Engine
if find_spec("triton"):
    from serving_client.engine.batching.fused_model import fused
    from serving_client.engine.kernels.decode import attend

pytestmark = requires("gpu")
RANKS = (4, 64, 8, 16, 32, 4, 8, 16)
SLOTS = 4
# The first of them runs beyond the cache's first length.
LENGTHS = (390, 3, 40, 7, 80, 21, 5, 60, 11, 33, 2, 90)


class Numbers:
    """A decoder that needs no tokenizer."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def random_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=300, initializer_range=0.2)
    return LlamaForCausalLM(config).cuda().eval().requires_grad_(False)


def random_adapters(batch: RunningBatch) -> list[Adapter]:
    torch.manual_seed(1)
    return [
        Adapter(
            str(number),
            {
                name: LowRank(torch.randn(rank, wide) * 0.1, torch.randn(rank, out) * 0.1)
                for name, (wide, out) in batch.module_shapes.items()
            },
        )
        for number, rank in enumerate(RANKS)
    ]


def questions(adapters: list[Adapter]) -> Iterator[Sequence]:
    """Of all adapters and the base model, ending one after the other."""
    chosen = [adapters[0], *adapters, None, *adapters]
    for number, length in enumerate(LENGTHS):
        params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
        prompt = [(number * 7 + place) % 300 for place in range(3 + number)]
        yield Sequence(prompt, params, chosen[number], Numbers(), lambda _: None)


def has_room(batch: RunningBatch, sequence: Sequence) -> bool:
    busy = {other.adapter for other in batch.rows if other.adapter}
    return sequence.adapter is None or batch.residents.admit(sequence.adapter, busy)


@torch.inference_mode()
def answers() -> list[list[int]]:
    """A request joins at every third step for which its adapter finds room."""
    batch = RunningBatch(random_model(), max_loras=SLOTS, ends=frozenset())
    sequences = list(questions(random_adapters(batch)))
    waiting, steps = list(sequences), 0
    while waiting or batch.rows:
        if waiting and (steps % 3 == 0 or not batch.rows) and has_room(batch, waiting[0]):
            batch.join([waiting.pop(0)])
        batch.step()
        batch.drop_finished()
        steps += 1
    return [sequence.tokens for sequence in sequences]


@pytest.mark.parametrize("has_kernels", [True, False])
def test_recorded_steps_answer_as_computed_ones(has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []  # Not the graphs themselves: they must be free to end.
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    if not has_kernels:
        monkeypatch.setattr(batches, "row_kernel", lambda _: None)
    recorded = answers()
    assert len(replays) > LENGTHS[0] / 2
    with monkeypatch.context() as patched:
        patched.setattr(batches, "runs_in_fixed_shapes", lambda *_: False)
        assert recorded == answers()
    assert len({tuple(tokens) for tokens in recorded}) == len(LENGTHS)


def test_a_model_that_looks_at_a_value_is_computed_step_by_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mixtures of experts do; to a recording that is an error."""
    monkeypatch.setattr(batches, "row_kernel", lambda _: None)
    expected = answers()
    forward = LlamaForCausalLM.forward

    def looking(model: LlamaForCausalLM, *args: Any, **fields: Any) -> Any:
        assert fields["input_ids"].max().item() < 300
        return forward(model, *args, **fields)

    monkeypatch.setattr(LlamaForCausalLM, "forward", looking)
    assert answers() == expected
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "The steps of this model are computed one by one, which takes longer"
    ]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_model_computes_what_transformers_does(family: str, dtype: torch.dtype) -> None:
    assert fused(wrapped(family, dtype))


def test_a_model_that_computes_something_else_keeps_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    assert fused(wrapped("Granite", torch.float32, residual_multiplier=0.3)) is None
    assert "its logits differ by" in caplog.text


def wrapped(family: str, dtype: torch.dtype, **fields: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        **shape, num_key_value_heads=2, vocab_size=300, initializer_range=0.2, pad_token_id=0, **fields
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data += torch.randn_like(parameter) * 0.3
    model = model.to("cuda", dtype).eval().requires_grad_(False)
    wrap_linears(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 16), (9, 3, 64), (32, 8, 128), (8, 8, 80)])
@pytest.mark.parametrize("length", [64, 1024, 4096])
def test_attention_reads_each_row_to_its_position(
    dtype: torch.dtype, heads: int, key_heads: int, size: int, length: int
) -> None:
    torch.manual_seed(0)
    positions = torch.tensor([0, length // 3, length - 1], device="cuda")
    queries = torch.randn(3, heads * size).to("cuda", dtype)
    keys, values = torch.randn(2, 4, key_heads, length, size).to("cuda", dtype)
    mask = torch.arange(length, device="cuda") <= positions[:, None]
    repeated = (states[:3].repeat_interleave(heads // key_heads, dim=1).double() for states in (keys, values))
    rows = queries.view(3, heads, 1, size).double()
    expected = scaled_dot_product_attention(rows, *repeated, attn_mask=mask[:, None, None], scale=0.1)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    actual = attend(queries, keys, values, positions, 0.1, length)
    torch.testing.assert_close(actual.double(), expected.view(3, -1), rtol=tolerance, atol=tolerance)


async def test_a_mixed_batch_on_a_gpu_answers_as_peft_does_on_a_cpu(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine("cuda", max_loras=3, max_cpu_loras=4)
    prompts = {name: list(f"{name} shall report".encode()) for name in ("tiny", *adapters)}
    async with serve(engine):
        for name, folder in adapters.items():
            engine.adapters.load(name, str(folder))
        together = await asyncio.gather(*(greedy(engine, name, prompt, 40) for name, prompt in prompts.items()))
    expected = [peft_tokens(prompt, 40, adapters.get(name)) for name, prompt in prompts.items()]
    assert together == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "wide", "out"), [(1, 48, 40), (6, 576, 1536), (16, 4096, 1024), (64, 1000, 14336)])
def test_each_row_gets_its_own_adapters_update(dtype: torch.dtype, rank: int, wide: int, out: int) -> None:
    kernel = row_kernel(torch.device("cuda"))
    assert kernel
    torch.manual_seed(0)
    slots = torch.tensor([3, -1, 0, 0, 2, -1, 3], device="cuda")
    x, y, down, up = (
        torch.randn(shape).to("cuda", dtype) for shape in ((7, 1, wide), (7, 1, out), (4, rank, wide), (4, rank, out))
    )
    own = (slots >= 0)[:, None, None] * torch.bmm(torch.bmm(x.double(), down[slots].double().mT), up[slots].double())
    expected = (y.double() + own).float()
    rtol, atol = (1e-4, 1e-2) if dtype == torch.float32 else (1e-2, 1e-1)
    torch.testing.assert_close(kernel(x, y, down, up, slots).float(), expected, rtol=rtol, atol=atol)
