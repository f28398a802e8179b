"""Preference rows in the order in which a training reads them; a resumed run reads the same order again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from training.lm import preference
from training.lm.error_reporting import BadInput
from training.lm.evaluation import held_out_sample
from training.lm.preference import Answer, Pair
from training.lm.preference_losses import mismatched
from training.lm.token_sequences import Cuts, DataError, Row, TokenSequence, sample
from training.recipes.run_file import Run
from training.recipes.training_loop.batches import HeldOutPart, Material, Reading, reading_groups, steps_of
from training.recipes.training_loop.mixture import shares_of

Kind = TypeVar("Kind", Pair, Answer)
Tokenise = Callable[..., list[Kind]]


def read_pairs(run: Run, tokenizer: Any) -> Material:
    """Read the run's preference pairs and return them tokenised, in reading order, with the held-out ones.

    Raises BadInput for a bad row, for rows that are not pairs, and for a dataset without a row that can be used.
    """
    pairs, material = read(run, tokenizer, preference.pairs_of)
    rows = [columns(chosen=pair.chosen, rejected=pair.rejected) for pair in pairs]
    return material(rows)


def read_answers(run: Run, tokenizer: Any) -> Material:
    """Read the answers that are marked good or bad and return them tokenised, in reading order; a pair gives two.

    Each row also has a mismatched answer, from which KTO estimates the divergence: as in TRL, a prompt of the batch
    with the answer of the row before it. Raises BadInput for a bad row and for a dataset without a row that can be
    used.
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
    """Return the named sequences as columns NAME_ids and NAME_labels."""
    parts: dict[str, Any] = {}
    for name, sequence in sequences.items():
        parts |= {f"{name}_ids": sequence.ids, f"{name}_labels": sequence.labels}
    return parts


def read(
    run: Run, tokenizer: Any, tokenise: Tokenise[Kind]
) -> tuple[list[Kind], Callable[[list[dict[str, Any]]], Material]]:
    """Return the run's tokenised rows in reading order, and a function that makes Material from their columns.

    `tokenise` turns rows into pairs or answers. Raises BadInput for a bad row and a dataset without a row that can be
    used.
    """
    chosen, cuts = run.hyperparameters, Cuts()
    made = partial(tokenised, run=run, tokenizer=tokenizer, tokenise=tokenise)
    shares = shares_of([part.weight for part in run.parts])
    rows: list[Kind] = []
    sizes: list[int] = []
    for part, share in zip(run.parts, shares, strict=True):
        most = None if chosen.epochs else math.ceil(run.sequences * share) + (share < 1)
        own = made(part.train, part.field("train"), most=most, cuts=cuts, shuffled=True)
        rows, sizes = rows + own, [*sizes, len(own)]
    reading = Reading([row.tokens for row in rows], sizes, shares)
    steps = steps_of(run, reading)
    ordered = [rows[place] for (place,) in reading_groups(reading, run, steps)]
    held_out, parts = read_held_out(run, made)
    tokens = [row.tokens for row in ordered]
    return ordered, lambda columns: Material(Dataset.from_list(columns), tokens, held_out, steps, cuts, parts)


def read_held_out(run: Run, made: Callable[..., list[Kind]]) -> tuple[list[Kind], list[HeldOutPart]]:
    """Return a sample of the held-out rows, tokenised by `made`, and the number of rows of each dataset.

    Each dataset gives its share of `eval_tokens`, and at least one row; one without held-out rows is passed over.
    Raises BadInput for a bad row and for a file without a row that can be used.
    """
    chosen = run.hyperparameters
    evaluated = [(part, part.eval) for part in run.parts if part.eval]
    shares = shares_of([part.weight for part, _ in evaluated])
    drawn: list[Kind] = []
    parts: list[HeldOutPart] = []
    for (part, path), share in zip(evaluated, shares, strict=True):
        own = held_out_sample(made(path, part.field("eval")), round(chosen.eval_tokens * share), chosen.seed)
        drawn, parts = drawn + own, [*parts, HeldOutPart(part.name, len(own))]
    return drawn, parts


def tokenised(
    path: Path,
    field: str,
    *,
    run: Run,
    tokenizer: Any,
    tokenise: Tokenise[Kind],
    most: int | None = None,
    cuts: Cuts | None = None,
    shuffled: bool = False,
) -> list[Kind]:
    """Read the file and return its rows tokenised, at most `most`; None takes all.

    `shuffled` takes them in the order of the run's seed; cut rows are counted in `cuts`. Raises BadInput that names
    `field`, also if no row can be used.
    """
    chosen = run.hyperparameters
    try:
        rows = worded(preference.rows_in(path), run)
        ordered = sample(rows, len(rows), chosen.seed) if shuffled else rows
        made = tokenise(ordered, tokenizer, chosen.max_length, most, cuts)
    except DataError as error:
        raise BadInput(f"{field}: {error}") from None
    if not made:
        raise BadInput(f"{field}: no row of {path.name} has its answers within max_length tokens; raise max_length.")
    return made


def worded(rows: Sequence[Row], run: Run) -> list[Row]:
    """Return the rows, with texts converted to chats if the run sets `as_chat`."""
    return preference.as_chat(rows) if run.hyperparameters.as_chat else list(rows)
