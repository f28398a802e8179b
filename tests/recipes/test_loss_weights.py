"""The weight of a row in the loss: nothing at 0, also within a packed row, and a share between 0 and 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from tests.tiny_model import make_model, make_tokenizer
from training.lm.evaluation import held_out_loss
from training.lm.token_sequences import TokenSequence, tokenise
from training.recipes.training_loop.batches import joined
from training.recipes.training_loop.loss_weights import COLUMN, WeightedTrainer

TOKENIZER = make_tokenizer()


def talk(weight: float | None, answer: str = "shall report") -> dict[str, Any]:
    extra = {} if weight is None else {"weight": weight}
    return {
        "messages": [
            {"role": "user", "content": "a bank"},
            {"role": "assistant", "content": answer, **extra},
            {"role": "user", "content": "the risk"},
            {"role": "assistant", "content": "within hours"},
        ]
    }


def read(row: dict[str, Any]) -> TokenSequence:
    return tokenise(row, TOKENIZER, 64)


def learned(row: dict[str, Any]) -> str:
    return str(TOKENIZER.decode([label for label in read(row).labels if label != -100]))


def test_an_answer_of_weight_0_is_read_and_not_counted() -> None:
    assert learned(talk(None)) == "shall report <end> within hours <end>"
    assert learned(talk(0)) == "within hours <end>"
    assert read(talk(0)).ids == read(talk(None)).ids
    assert read(talk(0)).weights is None


def test_a_row_of_weight_0_counts_nothing() -> None:
    assert read({**talk(None), "weight": 0}).targets == 0
    assert read({"prompt": "a bank", "completion": "shall", "weight": 0}).targets == 0


def test_fractions_of_message_and_row_are_multiplied() -> None:
    weights = read({**talk(0.5), "weight": 0.5}).weights or []
    assert {weight for weight in weights if weight} == {0.25, 0.5}


def gradient(rows: list[list[TokenSequence]], *, packed: bool = False, accumulate: int = 1) -> torch.Tensor:
    """The gradient of one step over the rows, each a list of joined sequences."""
    examples = [joined(row) for row in rows]
    has_weights = any(sequence.weights for row in rows for sequence in row)
    if not has_weights:
        for example in examples:
            del example[COLUMN]
    if not packed:
        for example in examples:
            del example["seq_lengths"]
    model = make_model()
    settings = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "learning_rate": 0.0,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }
    from datasets import Dataset

    kind = WeightedTrainer if has_weights else SFTTrainer
    trainer = kind(
        model=model,
        args=SFTConfig(
            output_dir="unused",
            max_steps=1,
            per_device_train_batch_size=len(rows) // accumulate,
            gradient_accumulation_steps=accumulate,
            padding_free=packed,
            activation_checkpointing=False,
            max_grad_norm=0.0,
            save_strategy="no",
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=TOKENIZER,
    )
    gradients: list[torch.Tensor] = []
    trainer.create_optimizer()
    original = trainer.optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
        return original(*args, **kwargs)

    trainer.optimizer.step = step
    trainer.train()
    return gradients[0]


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_of_weight_0_adds_no_gradient_also_in_a_packed_row(packed: bool) -> None:
    bad, other = read(talk(0, "exempt unless")), read({"text": "the bank shall report"})
    nothing = TokenSequence(bad.ids, [-100 if place < 7 else label for place, label in enumerate(bad.labels)])
    rows = [[bad, other]] if packed else [[bad], [other]]
    expected = [[nothing, other]] if packed else [[nothing], [other]]
    assert torch.equal(gradient(rows, packed=packed), gradient(expected, packed=packed))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.slow
def test_the_loss_of_fractions_is_their_weighted_mean(packed: bool) -> None:
    first, second = read({"text": "a bank shall report"}), read({"text": "each risk may harm clients or markets"})
    light = TokenSequence(first.ids, first.labels, [0.25] * len(first.ids))
    alone = [gradient([[sequence]], packed=packed) * sequence.targets for sequence in (first, second)]
    wanted = (0.25 * alone[0] + alone[1]) / (0.25 * first.targets + second.targets)
    rows = [[light, second]] if packed else [[light], [second]]
    assert torch.allclose(gradient(rows, packed=packed), wanted, atol=1e-5)
    if not packed:
        assert torch.allclose(gradient(rows, accumulate=2), wanted, atol=1e-5)


def test_the_held_out_loss_is_weighted_alike() -> None:
    model = make_model()
    first, second = read({"text": "a bank shall report"}), read({"text": "each risk may harm clients"})
    light = TokenSequence(first.ids, first.labels, [0.25] * len(first.ids))
    losses = [held_out_loss(model, [sequence], 1).loss for sequence in (first, second)]
    sizes = (0.25 * first.targets, second.targets)
    wanted = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    measured = held_out_loss(model, [light, second], 1)
    assert measured.loss == pytest.approx(wanted)
    assert (measured.rows, measured.tokens) == (2, first.targets + second.targets)
