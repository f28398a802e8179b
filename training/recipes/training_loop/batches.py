"""Training sequences in the order in which they are read; an interrupted run reads the same order again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from training.lm.base_model import sequences_of
from training.lm.data import Row, TokenSequence, sample
from training.lm.evaluation import first_tokens
from training.recipes.run_file import Run
from training.recipes.training_loop.sampling_order import packed, reading_order


@dataclass(frozen=True)
class Material:
    """Training data: `rows` in reading order, `tokens` of each row without padding, `held_out` for the loss."""

    rows: Dataset
    tokens: list[int]
    held_out: list[TokenSequence]

    def first_sequences(self, count: int) -> list[TokenSequence]:
        """Return the first `count` rows that the training reads."""
        rows = self.rows.select(range(min(count, len(self.rows))))
        return [TokenSequence(row["input_ids"], row["labels"]) for row in rows]


def read_material(run: Run, tokenizer: Any) -> Material:
    """Tokenise only the rows that the run will read, in the trainer's reading order. Raises BadInput."""
    chosen = run.hyperparameters
    sequences = sequences_of(run.train, "train", tokenizer, chosen.max_length, lambda rows: to_read(rows, run))
    groups = reading_groups([len(sequence.ids) for sequence in sequences], run)
    held_out = sequences_of(run.eval, "eval", tokenizer, chosen.max_length) if run.eval else []
    rows = Dataset.from_list([joined([sequences[place] for place in group]) for group in groups])
    tokens = [sum(lengths) for lengths in rows["seq_lengths"]]
    rows = rows if chosen.packing else rows.remove_columns("seq_lengths")
    return Material(rows, tokens, first_tokens(held_out, chosen.eval_tokens))


def to_read(rows: Sequence[Row], run: Run) -> list[Row]:
    """Sample the rows that the run reads; with packing all rows, as their number is unknown before tokenisation."""
    return sample(rows, len(rows) if run.hyperparameters.packing else run.sequences, run.hyperparameters.seed)


def reading_groups(lengths: list[int], run: Run) -> list[list[int]]:
    """Return the sequences of each row that the trainer reads: one, or with packing as many as fit."""
    chosen = run.hyperparameters
    if chosen.packing:
        return packed(lengths, run.sequences, chosen.max_length, chosen.seed)
    order = reading_order(lengths, run.sequences, chosen.batch_size * run.devices, chosen.seed)
    return [[place] for place in order]


def joined(sequences: list[TokenSequence]) -> dict[str, list[int]]:
    """Join sequences to one row; `seq_lengths` lets the collator restart positions, so that none sees another."""
    return {
        "input_ids": [token for sequence in sequences for token in sequence.ids],
        "labels": [label for sequence in sequences for label in sequence.labels],
        "seq_lengths": [len(sequence.ids) for sequence in sequences],
    }
