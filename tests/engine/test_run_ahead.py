"""Steps that are queued before the tokens of the step before are read; the recording is left out on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from serving_client.engine.batching import batch as batches
from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.batching.sampling import SamplingParams
from serving_client.engine.batching.sequence import Delta, Sequence


class Letters:
    """A decoder whose tokens are letters, so that a text can end an answer."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(65 + token % 26) for token in ids)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=60, initializer_range=0.3)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A flag for each step in fixed shape: True if its tokens lay on the device, as of steps that run ahead."""
    steps: list[bool] = []
    original = RunningBatch._fixed_step

    def recorded(batch: RunningBatch, fixed: object, tokens: object, positions: list[int]) -> object:
        steps.append(isinstance(tokens, torch.Tensor))
        return original(batch, fixed, tokens, positions)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "runs_in_fixed_shapes", lambda *_: True)
    monkeypatch.setattr(RunningBatch, "_fixed_step", recorded)
    return steps


@torch.inference_mode()
def answers(model: LlamaForCausalLM, params: list[SamplingParams], *, cancelled: int | None = None) -> list[list[int]]:
    """Two requests begin; the others join at every third step. One is cancelled after five steps."""
    batch = RunningBatch(model, max_loras=1, ends=frozenset())
    answered: list[list[int]] = [[] for _ in params]
    sequences = []
    for number, each in enumerate(params):

        def tell(delta: Delta, number: int = number) -> None:
            answered[number] += delta.token_ids

        sequences.append(Sequence([3 + number, 5, 7 + number], each, None, Letters(), tell))
    waiting, step = sequences[2:], 0
    batch.join(sequences[:2])
    while batch.rows or waiting:
        if waiting and step % 3 == 0:
            batch.join([waiting.pop(0)])
        if cancelled is not None and step == 5:
            sequences[cancelled].cancel()
        batch.drop_finished()
        if batch.rows:
            batch.step()
        batch.drop_finished()
        step += 1
    return answered


def greedy(tokens: int, *stop: str) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, stop=stop)


def test_steps_that_run_ahead_give_the_same_answers(model: LlamaForCausalLM, queued: list[bool]) -> None:
    lengths = [14, 3, 9, 1, 22]
    together = answers(model, [greedy(length) for length in lengths])
    assert sum(queued) > len(queued) / 2
    assert [len(tokens) for tokens in together] == lengths
    assert together == [alone(model, number, length) for number, length in enumerate(lengths)]


def test_an_answer_that_ends_by_its_text_leaves_the_others_alone(model: LlamaForCausalLM, queued: list[bool]) -> None:
    first = alone(model, 0, 12)
    stop = Letters().decode(first[4:6])
    together = answers(model, [greedy(12, stop), greedy(12), greedy(12)])
    assert any(queued)
    assert len(together[0]) <= 6
    assert together[1:] == [alone(model, 1, 12), alone(model, 2, 12)]


def test_a_cancelled_request_gets_no_further_token(model: LlamaForCausalLM, queued: list[bool]) -> None:
    together = answers(model, [greedy(20), greedy(20)], cancelled=0)
    assert any(queued)
    assert len(together[0]) < 9
    assert together[1] == alone(model, 1, 20)


def test_a_sampled_row_is_never_run_ahead_of(model: LlamaForCausalLM, queued: list[bool]) -> None:
    sampled = SamplingParams(max_tokens=10, temperature=0.8, seed=1)
    assert answers(model, [sampled, greedy(8)]) == answers(model, [sampled, greedy(8)])
    assert not any(queued)


def alone(model: LlamaForCausalLM, number: int, length: int) -> list[int]:
    """Return transformers' own greedy answer to the prompt of that number."""
    tokens = torch.tensor([[3 + number, 5, 7 + number]])
    for _ in range(length):
        tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), dim=1)
    return tokens[0, 3:].tolist()
