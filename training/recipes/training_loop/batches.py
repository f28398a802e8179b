"""Training sequences in the order in which they are read; an interrupted run reads the same order again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from training.lm.base_model import sequences_of
from training.lm.data import Cuts, Row, TokenSequence, as_chat, sample
from training.lm.evaluation import held_out_sample
from training.recipes.run_file import Run
from training.recipes.training_loop.loss_weights import COLUMN
from training.recipes.training_loop.sampling_order import packed, packed_rows, reading_order


@dataclass(frozen=True)
class Material:
    """Training data: `rows` in reading order, `tokens` of each without padding, `held_out` for the loss.

    `steps`: the run's own, or as many as its epochs take; `cuts`: what max_length did to the rows.
    """

    rows: Dataset
    tokens: list[int]
    held_out: list[TokenSequence]
    steps: int = 0
    cuts: Cuts = field(default_factory=Cuts)

    @property
    def is_weighted(self) -> bool:
        """Return True if a token counts with another weight than 0 or 1."""
        return COLUMN in self.rows.column_names

    def first_sequences(self, count: int) -> list[TokenSequence]:
        """Return the first `count` rows that the training reads."""
        rows = self.rows.select(range(min(count, len(self.rows))))
        return [TokenSequence(row["input_ids"], row["labels"]) for row in rows]


def read_material(run: Run, tokenizer: Any) -> Material:
    """Tokenise only the rows that the run will read, in the trainer's reading order. Raises BadInput."""
    chosen = run.hyperparameters
    cuts = Cuts()
    most = None if chosen.packing or chosen.epochs else run.sequences
    sequences = sequences_of(
        run.train, "train", tokenizer, chosen.max_length, lambda rows: to_read(rows, run), most, cuts
    )
    lengths = [len(sequence.ids) for sequence in sequences]
    steps = steps_of(run, lengths)
    groups = reading_groups(lengths, run, steps)
    held_out = (
        sequences_of(run.eval, "eval", tokenizer, chosen.max_length, lambda rows: worded(rows, run)) if run.eval else []
    )
    rows = Dataset.from_list([joined([sequences[place] for place in group]) for group in groups])
    if not any(sequence.weights for sequence in sequences):
        rows = rows.remove_columns(COLUMN)
    tokens = [sum(lengths) for lengths in rows["seq_lengths"]]
    rows = rows if chosen.packing else rows.remove_columns("seq_lengths")
    return Material(rows, tokens, held_out_sample(held_out, chosen.eval_tokens, chosen.seed), steps, cuts)


def to_read(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return all rows in the order in which they are tokenised, until the run has as many as it reads."""
    return worded(sample(rows, len(rows), run.hyperparameters.seed), run)


def worded(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return the rows as they are, or prompts as chats where the run asks for it."""
    return as_chat(rows) if run.hyperparameters.as_chat else list(rows)


def steps_of(run: Run, lengths: list[int]) -> int:
    """Return the steps in which the run reads its sequences as often as it should."""
    chosen = run.hyperparameters
    if not chosen.epochs:
        return chosen.steps
    rows = chosen.epochs * len(lengths)
    if chosen.packing:
        rows = packed_rows(lengths, chosen.epochs, chosen.max_length, chosen.seed)
    return -(-rows // rows_in_step(run))


def rows_in_step(run: Run) -> int:
    """Return the rows that all processes read in a step."""
    return run.hyperparameters.batch_size * run.hyperparameters.gradient_accumulation * run.devices


def reading_groups(lengths: list[int], run: Run, steps: int) -> list[list[int]]:
    """Return the sequences of each row that the trainer reads: one, or with packing as many as fit."""
    chosen = run.hyperparameters
    if chosen.packing:
        return packed(lengths, steps * rows_in_step(run), chosen.max_length, chosen.seed)
    order = reading_order(lengths, steps * rows_in_step(run), chosen.batch_size * run.devices, chosen.seed)
    return [[place] for place in order]


def joined(sequences: list[TokenSequence]) -> dict[str, Any]:
    """Join sequences to one row; `seq_lengths` lets the collator restart positions, so that none sees another."""
    return {
        "input_ids": [token for sequence in sequences for token in sequence.ids],
        "labels": [label for sequence in sequences for label in sequence.labels],
        "seq_lengths": [len(sequence.ids) for sequence in sequences],
        COLUMN: [weight for sequence in sequences for weight in sequence.weights or [1.0] * len(sequence.ids)],
    }
