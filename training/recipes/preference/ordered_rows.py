"""Preference rows in the order in which a training reads them; an interrupted run reads the same order again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from datasets import Dataset

from training.lm import preference
from training.lm.error_reporting import BadInput
from training.lm.evaluation import held_out_sample
from training.lm.preference import Answer, Pair
from training.lm.preference_losses import mismatched
from training.lm.token_sequences import Cuts, DataError, Row, TokenSequence, sample
from training.recipes.run_file import Run
from training.recipes.training_loop.batches import Material, Reading, reading_groups, steps_of

Kind = TypeVar("Kind", Pair, Answer)
Tokenise = Callable[..., list[Kind]]


def read_pairs(run: Run, tokenizer: Any) -> Material:
    """Return preference pairs as tokenised material in reading order. Raises BadInput."""
    pairs, material = read(run, tokenizer, preference.pairs_of)
    rows = [columns(chosen=pair.chosen, rejected=pair.rejected) for pair in pairs]
    return material(rows)


def read_answers(run: Run, tokenizer: Any) -> Material:
    """Return answers that are marked good or bad as tokenised material, each with its batch's mismatched answer.

    The mismatched ones, from which KTO estimates the divergence, are those of TRL: each prompt of a batch with the
    answer of the row before it. Raises BadInput.
    """
    answers, material = read(run, tokenizer, preference.answers_of)
    size = run.hyperparameters.batch_size
    rows = []
    for start in range(0, len(answers), size):
        batch = answers[start : start + size]
        for answer, other in zip(batch, mismatched(batch, run.hyperparameters.max_length), strict=True):
            rows.append({**columns(answer=answer.sequence, other=other), "label": answer.is_good})
    return material(rows)


def columns(**sequences: TokenSequence) -> dict[str, Any]:
    """Return the ids and labels of the named sequences as columns NAME_ids and NAME_labels."""
    parts: dict[str, Any] = {}
    for name, sequence in sequences.items():
        parts |= {f"{name}_ids": sequence.ids, f"{name}_labels": sequence.labels}
    return parts


def read(
    run: Run, tokenizer: Any, tokenise: Tokenise[Kind]
) -> tuple[list[Kind], Callable[[list[dict[str, Any]]], Material]]:
    """Return the tokenised rows in reading order, and a function that makes material of their columns.

    Raises BadInput.
    """
    chosen, cuts = run.hyperparameters, Cuts()

    def tokenised(path: Any, field: str, most: int | None, counted: Cuts | None) -> list[Kind]:
        try:
            rows = worded(preference.rows_in(path), run)
            shuffled = sample(rows, len(rows), chosen.seed) if field == "train" else rows
            made = tokenise(shuffled, tokenizer, chosen.max_length, most, counted)
        except DataError as error:
            raise BadInput(f"{field}: {error}") from None
        if not made:
            raise BadInput(
                f"{field}: no row of {path.name} has its answers within max_length tokens; raise max_length."
            )
        return made

    read_rows = tokenised(run.train, "train", None if chosen.epochs else run.sequences, cuts)
    lengths = [row.tokens for row in read_rows]
    reading = Reading.of_one(lengths)
    steps = steps_of(run, reading)
    ordered = [read_rows[place] for (place,) in reading_groups(reading, run, steps)]
    held_out = (
        held_out_sample(tokenised(run.eval, "eval", None, None), chosen.eval_tokens, chosen.seed) if run.eval else []
    )
    tokens = [row.tokens for row in ordered]
    return ordered, lambda rows: Material(Dataset.from_list(rows), tokens, held_out, steps, cuts)


def worded(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return the rows; texts become chats if the run's `as_chat` asks for it."""
    return preference.as_chat(rows) if run.hyperparameters.as_chat else list(rows)
