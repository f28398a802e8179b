"""Training sequences in the order in which they are read; a resumed run reads the same order again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Dataset

from training.lm.base_model import sequences_of
from training.lm.evaluation import held_out_sample
from training.lm.token_sequences import Cuts, Row, TokenSequence, as_chat, sample
from training.recipes.run_file import Run
from training.recipes.training_loop.loss_weights import COLUMN
from training.recipes.training_loop.mixture import rounds, rows_of_an_epoch, shares_of
from training.recipes.training_loop.sampling_order import Draw, packed, packed_rows, reading_order


@dataclass(frozen=True)
class HeldOutPart:
    """A dataset of a mixture and the number of its rows among the held-out rows."""

    name: str
    rows: int


# Columns that hold a sequence, of answers and of preference rows, and the columns of its labels.
SEQUENCES = {
    "input_ids": "labels",
    "chosen_ids": "chosen_labels",
    "rejected_ids": "rejected_labels",
    "answer_ids": "answer_labels",
}


@dataclass(frozen=True)
class Material:
    """Training data: `rows` in reading order, the `tokens` of each without padding, and `held_out` rows for the loss.

    `steps` are the run's own or as many as its epochs take; `cuts` counts the rows that max_length cut; `parts` are the
    datasets of the held-out rows, in the rows' order.
    """

    rows: Dataset
    tokens: list[int]
    held_out: list[Any]
    steps: int = 0
    cuts: Cuts = field(default_factory=Cuts)
    parts: list[HeldOutPart] = field(default_factory=list)

    @property
    def is_weighted(self) -> bool:
        """Return True if some token has another loss weight than 0 or 1."""
        return COLUMN in self.rows.column_names

    def first_sequences(self, count: int) -> list[TokenSequence]:
        """Return the sequences of the first `count` rows; a preference pair has two."""
        rows = self.rows.select(range(min(count, len(self.rows))))
        names = [(ids, labels) for ids, labels in SEQUENCES.items() if ids in rows.column_names]
        return [TokenSequence(row[ids], row[labels]) for row in rows for ids, labels in names]


@dataclass(frozen=True)
class Reading:
    """The data that a run reads, by size alone.

    It has the length in tokens of each sequence, dataset after dataset, and the size in rows and the share of each
    dataset.
    """

    lengths: list[int]
    sizes: list[int]
    shares: list[float]

    @classmethod
    def of_one(cls, lengths: list[int]) -> Reading:
        """Return the reading of a single dataset with these lengths."""
        return cls(lengths, [len(lengths)], [1.0])

    def rounds(self, total: int = 0) -> Draw | None:
        """Return a function draw(chance) that returns the row indices of the next round of a mixture.

        None for a single dataset, which is read in plain epochs. `total` is the number of rows that will be read; 0 if
        that is not known.
        """
        return rounds(self.sizes, self.shares, total) if len(self.sizes) > 1 else None

    @property
    def rows_of_an_epoch(self) -> int:
        """Return the number of rows to read until each row was read at least once."""
        return rows_of_an_epoch(self.sizes, self.shares)


def read_material(run: Run, tokenizer: Any) -> Material:
    """Read and tokenise the run's rows; return them in reading order, with the held-out rows.

    Raises BadInput for a bad row and for a dataset without a row that can be used.
    """
    chosen = run.hyperparameters
    cuts = Cuts()
    sequences, reading = read_train(run, tokenizer, cuts)
    steps = steps_of(run, reading)
    groups = reading_groups(reading, run, steps)
    held_out, parts = read_held_out(run, tokenizer)
    rows = Dataset.from_list([joined([sequences[place] for place in group]) for group in groups])
    if not any(sequence.weights for sequence in sequences):
        rows = rows.remove_columns(COLUMN)
    tokens = [sum(lengths) for lengths in rows["seq_lengths"]]
    rows = rows if chosen.packing else rows.remove_columns("seq_lengths")
    return Material(rows, tokens, held_out, steps, cuts, parts)


def read_train(run: Run, tokenizer: Any, cuts: Cuts) -> tuple[list[TokenSequence], Reading]:
    """Return the tokenised training rows, dataset after dataset, each in an order fixed by the seed, and their sizes.

    Without packing or epochs only as many rows are tokenised as the run can read. Cut rows are counted in `cuts`.
    Raises BadInput for a bad row and for a dataset without a row that can be used.
    """
    chosen = run.hyperparameters
    shares = shares_of([part.weight for part in run.parts])
    sequences: list[TokenSequence] = []
    sizes: list[int] = []
    order = partial(to_read, run=run)
    for part, share in zip(run.parts, shares, strict=True):
        most = None if chosen.packing or chosen.epochs else math.ceil(run.sequences * share) + 1
        field, length = part.field("train"), chosen.max_length
        read = sequences_of(part.train, field, tokenizer, length, order, most, cuts, chosen.loss)
        sequences, sizes = sequences + read, [*sizes, len(read)]
    return sequences, Reading([len(sequence.ids) for sequence in sequences], sizes, shares)


def read_held_out(run: Run, tokenizer: Any) -> tuple[list[TokenSequence], list[HeldOutPart]]:
    """Return a tokenised sample of the held-out rows, and the number of rows of each dataset.

    The same part of a row counts in the loss as in training. Each dataset gives its share of `eval_tokens`, and at
    least one row; one without held-out rows is passed over. Raises BadInput for a bad row and if no row can be used.
    """
    chosen = run.hyperparameters
    evaluated = [(part, part.eval) for part in run.parts if part.eval]
    shares = shares_of([part.weight for part, _ in evaluated])
    drawn: list[TokenSequence] = []
    parts: list[HeldOutPart] = []
    order = partial(worded, run=run)
    for (part, path), share in zip(evaluated, shares, strict=True):
        rows = sequences_of(path, part.field("eval"), tokenizer, chosen.max_length, order, loss=chosen.loss)
        own = held_out_sample(rows, round(chosen.eval_tokens * share), chosen.seed)
        drawn, parts = drawn + own, [*parts, HeldOutPart(part.name, len(own))]
    return drawn, parts


def to_read(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return all rows in a random order fixed by the run's seed, as chats if the run sets `as_chat`."""
    return worded(sample(rows, len(rows), run.hyperparameters.seed), run)


def worded(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return the rows, with prompts converted to chats if the run sets `as_chat`."""
    return as_chat(rows) if run.hyperparameters.as_chat else list(rows)


def steps_of(run: Run, reading: Reading) -> int:
    """Return the number of optimiser steps: the run's own, or as many as its epochs take."""
    chosen = run.hyperparameters
    if not chosen.epochs:
        return chosen.steps
    rows = chosen.epochs * reading.rows_of_an_epoch
    if chosen.packing:
        rows = packed_rows(reading.lengths, rows, chosen.max_length, chosen.seed, reading.rounds())
    return -(-rows // rows_in_step(run))


def rows_in_step(run: Run) -> int:
    """Return the number of rows that all processes together read in one optimiser step."""
    return run.hyperparameters.batch_size * run.hyperparameters.gradient_accumulation * run.devices


def reading_groups(reading: Reading, run: Run, steps: int) -> list[list[int]]:
    """Return for each row that the trainer reads the indices of its sequences: one, or with packing as many as fit."""
    chosen, lengths, count = run.hyperparameters, reading.lengths, steps * rows_in_step(run)
    if chosen.packing:
        return packed(lengths, count, chosen.max_length, chosen.seed, reading.rounds())
    order = reading_order(lengths, count, chosen.batch_size * run.devices, chosen.seed, reading.rounds(count))
    return [[place] for place in order]


def joined(sequences: list[TokenSequence]) -> dict[str, Any]:
    """Return sequences joined to one row.

    `seq_lengths` lets the collator restart positions, so that none attends to another.
    """
    return {
        "input_ids": [token for sequence in sequences for token in sequence.ids],
        "labels": [label for sequence in sequences for label in sequence.labels],
        "seq_lengths": [len(sequence.ids) for sequence in sequences],
        COLUMN: [weight for sequence in sequences for weight in sequence.weights or [1.0] * len(sequence.ids)],
    }
