"""The losses and rewards of DPO, KTO and ORPO on held-out rows.

The losses are TRL's: of DPO (arXiv 2305.18290) the sigmoid loss, of KTO (arXiv 2402.01306) equation 7, of ORPO
(arXiv 2403.07691) equation 6. A reward is beta times what the model adds to the reference's log-probability of an
answer; the reference is the model without its adapter. ORPO has no reference and takes beta times a token's mean
log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from training.lm.evaluation import HeldOutLoss, example_losses
from training.lm.preference import Answer, Pair
from training.lm.token_sequences import TokenSequence


@contextmanager
def without_adapter(model: Any) -> Iterator[Any]:
    """Yield the model with its adapter switched off inside the block, as it was before the training.

    A model without an adapter is yielded unchanged.
    """
    plain = getattr(model, "module", model)
    if not hasattr(plain, "disable_adapter"):
        yield plain
        return
    with plain.disable_adapter():
        yield plain


def log_probabilities(model: Any, sequences: Sequence[TokenSequence], pad: int) -> Any:
    """Return the sum of the log-probabilities of each sequence's counted tokens, in nats: (sequences,) in float64."""
    losses = example_losses(model, sequences, pad)
    return np.array([-each.loss * sequence.weight for each, sequence in zip(losses, sequences, strict=True)])


def added(model: Any, sequences: Sequence[TokenSequence], pad: int) -> Any:
    """Return what the adapter adds to each sequence's log-probability, in nats, below 0 if it lowers it: (sequences,).

    `pad` is the padding token.
    """
    with without_adapter(model) as reference:
        before = log_probabilities(reference, sequences, pad)
    return log_probabilities(model, sequences, pad) - before


def log_sigmoid(values: Any) -> Any:
    """Return log(1 / (1 + exp(-x))) for each value, without overflow."""
    return -np.logaddexp(0.0, -values)


def held_out_dpo(model: Any, pairs: Sequence[Pair], pad: int, beta: float) -> HeldOutLoss:
    """Return DPO's loss and rewards on held-out pairs, with each row's loss; `pad` is the padding token."""
    both = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    chosen, rejected = np.split(beta * added(model, both, pad), 2)
    return measured(-log_sigmoid(chosen - rejected), pairs, chosen, rejected)


def held_out_kto(
    model: Any, answers: Sequence[Answer], pad: int, beta: float, weights: tuple[float, float], max_length: int
) -> HeldOutLoss:
    """Return KTO's loss and rewards on held-out answers; `weights` are those of good and of bad answers.

    The divergence from the reference is estimated as TRL does in a batch: from each prompt followed by the answer of
    another row.
    """
    others = mismatched(answers, max_length)
    gained = added(model, [*(answer.sequence for answer in answers), *others], pad)
    gained, divergence = gained[: len(answers)], max(0.0, mean(gained[len(answers) :]))
    is_good = np.array([answer.is_good for answer in answers])
    sign, weight = np.where(is_good, 1.0, -1.0), np.where(is_good, *weights)
    losses = weight * (1 - np.exp(log_sigmoid(beta * sign * (gained - divergence))))
    return measured(losses, answers, beta * gained[is_good], beta * gained[~is_good])


def mismatched(answers: Sequence[Answer], max_length: int) -> list[TokenSequence]:
    """Return each prompt followed by the answer of the row before it; the first prompt gets the last answer."""
    return [answers[place - 1].after(answer, max_length) for place, answer in enumerate(answers)]


def held_out_orpo(model: Any, pairs: Sequence[Pair], pad: int, beta: float) -> HeldOutLoss:
    """Return ORPO's loss and rewards on held-out pairs, computed as one batch of TRL's; `pad` is the padding token."""
    both = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    means = log_probabilities(model, both, pad) / np.array([sequence.targets for sequence in both])
    chosen, rejected = np.split(means, 2)
    odds = chosen - rejected - (np.log(-np.expm1(chosen)) - np.log(-np.expm1(rejected)))
    ratio = -beta * log_sigmoid(odds)
    # The likelihood of ORPO counts the prompt, too.
    read = [TokenSequence(pair.chosen.ids, pair.chosen.ids) for pair in pairs]
    likelihoods = np.array([each.loss for each in example_losses(model, read, pad)])
    counts = np.array([sequence.targets for sequence in read])
    result = measured(likelihoods + ratio, pairs, beta * chosen, beta * rejected)
    return replace(result, loss=float(likelihoods @ counts / counts.sum()) + mean(ratio))


def measured(losses: Any, rows: Sequence[Pair | Answer], chosen: Any, rejected: Any) -> HeldOutLoss:
    """Return the mean of `losses`, with the mean rewards of preferred and of rejected answers, as far as there are any.

    `chosen` and `rejected` are the rewards of each. The names are `reward_chosen` and `reward_rejected` and, if there
    are both, `reward_margin` and `reward_accuracy`: the share of pairs whose preferred answer has the higher reward.
    For answers that are not pairs, every good answer is compared with every bad one.
    """
    sides = {"reward_chosen": chosen, "reward_rejected": rejected}
    rewards = {name: mean(values) for name, values in sides.items() if len(values)}
    if len(rewards) == len(sides):
        rewards["reward_margin"] = rewards["reward_chosen"] - rewards["reward_rejected"]
        are_pairs = all(isinstance(row, Pair) for row in rows)
        rewards["reward_accuracy"] = mean(chosen > (rejected if are_pairs else rejected[:, None]))
    tokens = sum(row.targets for row in rows)
    return HeldOutLoss(mean(losses), tokens, len(rows), [float(loss) for loss in losses], rewards)


def mean(values: Any) -> float:
    """Return the mean of the values as a float."""
    return float(np.mean(values))
