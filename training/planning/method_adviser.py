"""Choice of a training method: the decision matrix as a function that gives every reason. No torch, no database.

Each criterion gives every method points and a sentence; a method that cannot be trained at all is excluded. The inputs
that would change the answer are determined by advising again with one input changed at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.core.counts import counted
from adapterhub.core.method_names import method_name

METHODS = ("lora", "qlora", "dora", "adalora", "full", "galore")
# Methods by what the data hold: answers, pairs of a preferred and a rejected answer, or answers marked good or bad.
METHODS_OF = {"answers": METHODS, "pairs": ("dpo", "kto", "orpo"), "labels": ("kto",)}
WHOLE = ("full", "galore")
# Rows under which, and above which, the article calls a dataset small and large: rules of thumb.
SMALL_ROWS, LARGE_ROWS = 1_000, 100_000
# Divergence of the task's hidden states from general text, in nats a channel (mean over modules): rules of thumb.
MILD_SHIFT, EXTREME_SHIFT = 0.05, 0.5
# Steps a second against full fine-tuning: PEFT's MetaMathQA suite, 3B on an L40S; QLoRA: torchtune's README, 8B.
PACE = {"full": 1.0, "lora": 2.28, "dora": 1.80, "adalora": 1.84, "qlora": 1.46}
FAR_AND_ALONE = "there were more than 100,000 rows of a far domain, served alone, and general skill might be lost"
RANKS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Situation:
    """Inputs of the advice. If an input is not known (None), its criterion says so and gives no points.

    `targets` are the tokens that count in the loss; `divergence` is in nats per channel; `verdicts` are the estimator's
    by method, on `devices` devices; `rank_parameters` is the number of a LoRA's parameters at rank 1; `planned` that of
    planned ranks, 0 without a plan; `kind` is the kind of data (a key of METHODS_OF).
    """

    rows: int | None = None
    targets: int | None = None
    divergence: float | None = None
    verdicts: Mapping[str, str] | None = None
    devices: int = 1
    rank_parameters: int = 0
    rank: int = 16
    planned: int = 0
    many_adapters: bool = True
    keeps_general_skill: bool = True
    least_latency: bool = False
    kind: str = "answers"

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods that can learn from data of this kind."""
        return METHODS_OF[self.kind]


@dataclass(frozen=True)
class Reason:
    """A criterion's points and sentence for a method; `source` is measured, stated, or rule of thumb.

    `excludes` is True if the method cannot be trained at all.
    """

    criterion: str
    points: int
    text: str
    source: str
    excludes: bool = False


@dataclass(frozen=True)
class Advice:
    """A method with its reasons; `points` is their sum."""

    method: str
    reasons: tuple[Reason, ...]

    @property
    def points(self) -> int:
        """Return the sum of the reasons' points."""
        return sum(reason.points for reason in self.reasons)

    @property
    def is_possible(self) -> bool:
        """Return True unless a reason excludes the method."""
        return not any(reason.excludes for reason in self.reasons)


Criterion = Callable[[str, Situation], Reason]


def memory(method: str, situation: Situation) -> Reason:
    """Return points for fitting into the device's memory; a method that does not fit is excluded."""
    if situation.verdicts is None:
        return Reason("memory", 0, "No device is known: name its memory to see what fits.", "stated")
    verdict = situation.verdicts[method]
    points = {"fits": 1, "tight": 0, "will not fit": -9}[verdict]
    text = f"It {verdict}." if verdict != "tight" else "It is tight: over 90 % of the device."
    return Reason("memory", points, text, "measured", excludes=verdict == "will not fit")


def capacity(method: str, situation: Situation) -> Reason:
    """Return the points for capacity, with the reason.

    An adapter should have at least as many parameters as there are completion tokens to learn: 1 point if it has, 0 if
    a higher rank would, -2 if no rank of RANKS would. They are 0 for methods that train all weights, and if the
    capacity or the data's tokens are not known.
    """
    if situation.targets is None or not situation.rank_parameters:
        return Reason("capacity", 0, "The tokens of the data are not known.", "stated")
    room = situation.planned or situation.rank * situation.rank_parameters
    if method in WHOLE:
        return Reason("capacity", 0, "All weights are trained: capacity is not a limit.", "measured")
    if room >= situation.targets:
        ranks = "of the planned ranks" if situation.planned else f"at rank {situation.rank}"
        text = f"{counted(room, 'parameter')} {ranks} hold {counted(situation.targets, 'completion token')}."
        return Reason("capacity", 1, text, "measured")
    wanted = rank_for(situation)
    ranks = "The planned ranks have" if situation.planned else f"Rank {situation.rank} has"
    text = f"{ranks} {counted(room, 'parameter')} for {counted(situation.targets, 'completion token')}: "
    text += f"take rank {wanted}." if wanted else f"even rank {RANKS[-1]} has too few."
    return Reason("capacity", 0 if wanted else -2, text, "measured")


def rank_for(situation: Situation) -> int | None:
    """Return the lowest of RANKS with as many parameters as there are completion tokens; None if no rank has."""
    targets = situation.targets or 0
    return next((rank for rank in RANKS if rank * situation.rank_parameters >= targets), None)


def data_size(method: str, situation: Situation) -> Reason:
    """Return the points for this number of rows with the reason; 0 points if it is not known."""
    if situation.rows is None:
        return Reason("dataset size", 0, "No dataset was named.", "stated")
    size = f"{counted(situation.rows, 'row')}"
    if situation.rows > LARGE_ROWS:
        points, text = (1 if method in WHOLE else 0), f"{size} are enough to move all weights."
    elif situation.rows < SMALL_ROWS:
        points, text = (-2 if method in WHOLE else 1), f"{size} are few: all weights would memorise them."
    else:
        points, text = (-1 if method in WHOLE else 1), f"{size} suit an adapter."
    return Reason("dataset size", points, text, "rule of thumb")


def domain_shift(method: str, situation: Situation) -> Reason:
    """Return the points for the distance of the data from general text, with the reason.

    A far domain speaks for training all weights, a near one for an adapter. 0 points if the distance is not known.
    """
    if situation.divergence is None:
        return Reason("domain shift", 0, "Not measured: a rank analysis of the seed preset measures it.", "stated")
    far = f"{situation.divergence:.3g} nats a channel from general text"
    if situation.divergence > EXTREME_SHIFT:
        points, text = (2 if method in WHOLE else 0), f"{far}: extreme, as a new language is."
    elif situation.divergence < MILD_SHIFT:
        points, text = (-1 if method in WHOLE else 1), f"{far}: mild; a few ranks are enough."
    else:
        points, text = (0 if method in WHOLE else 1), f"{far}: moderate, a specialisation."
    return Reason("domain shift", points, text, "measured")


def serving(method: str, situation: Situation) -> Reason:
    """Return points for how cheaply the method's result is served beside other adapters on one base model.

    They are 0 if it is served alone.
    """
    words = {
        "lora": (2, "Served as it is, beside hundreds of others."),
        "qlora": (1, "Served on the 16-bit base: evaluate it there before a promotion."),
        "adalora": (2, "Becomes a plain LoRA exactly."),
        "dora": (0, "vLLM refuses DoRA: it becomes a LoRA by truncated SVD, with an error."),
        "dpo": (2, "A LoRA: served as it is, beside hundreds of others."),
        "kto": (2, "A LoRA: served as it is, beside hundreds of others."),
        "orpo": (2, "A LoRA: served as it is, beside hundreds of others."),
        "galore": (-2, "A whole model: becomes a LoRA with an error, or has a cluster of its own."),
        "full": (-2, "A whole model: becomes a LoRA with an error, or has a cluster of its own."),
    }
    if not situation.many_adapters:
        return Reason("shared serving", 0, "It is served alone: a cluster of its own costs nothing extra.", "stated")
    return Reason("shared serving", words[method][0], words[method][1], "stated")


def forgetting(method: str, situation: Situation) -> Reason:
    """Return points for keeping general skill: 'LoRA learns less and forgets less' (arXiv 2405.09673)."""
    if not situation.keeps_general_skill:
        return Reason("forgetting", 0, "General skill may be lost.", "stated")
    if method in WHOLE:
        return Reason("forgetting", -2, "All weights change: what the base model knew is at risk.", "rule of thumb")
    return Reason("forgetting", 1, "The base stays as it is; an update of low rank forgets less.", "rule of thumb")


def latency(method: str, situation: Situation) -> Reason:
    """Return the points for the latency of serving the method's result, with the reason.

    They are 1 for methods that train all weights, else 0; all are 0 unless the least latency is wanted.
    """
    if not situation.least_latency:
        return Reason("latency", 0, "A few percent of latency do not matter.", "stated")
    if method in WHOLE:
        return Reason("latency", 1, "As fast as the base: nothing is added to a request.", "rule of thumb")
    return Reason(
        "latency", 0, "As fast as the base only when merged into it, on a cluster of its own.", "rule of thumb"
    )


def pace(method: str, situation: Situation) -> Reason:
    """Return points for the training speed in steps a second, relative to full fine-tuning."""
    if method not in PACE:
        return Reason("training speed", 0, "No published figure.", "rule of thumb")
    text = f"About {PACE[method]:.2g} times the steps a second of full fine-tuning."
    return Reason("training speed", 1 if PACE[method] >= 2 else 0, text, "rule of thumb")


def preferences(method: str, situation: Situation) -> Reason:
    """Return points for how the method uses preferences; 0 for data without any."""
    words = {
        ("dpo", "pairs"): (2, "It compares both answers of a pair, which is all that a pair says."),
        ("kto", "pairs"): (0, "It reads a pair as two answers, each good or bad for itself."),
        ("orpo", "pairs"): (
            -1,
            "It learns the preferred answers, too, without a reference; experimental in TRL.",
        ),
        ("kto", "labels"): (2, "It learns from answers that are marked good or bad one by one."),
    }
    points, text = words.get((method, situation.kind), (0, "The data hold answers, no preferences."))
    return Reason("preferences", points, text, "rule of thumb")


CRITERIA: tuple[Criterion, ...] = (memory, capacity, data_size, domain_shift, serving, forgetting, latency, pace)


def advise(situation: Situation) -> list[Advice]:
    """Return all methods that learn from the data, best first; those that cannot be trained come last."""
    criteria = CRITERIA if situation.kind == "answers" else (preferences, *CRITERIA)
    methods = situation.methods
    ratings = [Advice(method, tuple(criterion(method, situation) for criterion in criteria)) for method in methods]
    return sorted(ratings, key=lambda advice: (not advice.is_possible, -advice.points, methods.index(advice.method)))


def alternatives(situation: Situation) -> Sequence[tuple[str, dict[str, Any]]]:
    """Return pairs of a description and the inputs that it changes; the last changes several inputs together."""
    only_4_bit = {**dict.fromkeys(situation.methods, "will not fit"), "qlora": "fits"}
    return [
        ("every method fitted the device", {"verdicts": dict.fromkeys(situation.methods, "fits")}),
        ("only 4-bit weights fitted the device", {"verdicts": only_4_bit}),
        ("there were more than 100,000 rows", {"rows": LARGE_ROWS + 1}),
        ("the domain were extremely far from general text", {"divergence": 2 * EXTREME_SHIFT}),
        ("it were served alone, not beside other adapters", {"many_adapters": False}),
        ("general skill might be lost", {"keeps_general_skill": False}),
        (
            FAR_AND_ALONE,
            {
                "rows": LARGE_ROWS + 1,
                "divergence": 2 * EXTREME_SHIFT,
                "many_adapters": False,
                "keeps_general_skill": False,
            },
        ),
    ]


def what_would_change_it(situation: Situation) -> list[str]:
    """Return sentences that name the changes of input which would put another method first."""
    first = leader(situation)
    sentences = []
    for words, change in alternatives(situation):
        other = leader(replace(situation, **change))
        if other != first:
            sentences.append(f"If {words}, {method_name(other) if other else 'no method'} would come first.")
    return sentences


def leader(situation: Situation) -> str | None:
    """Return the method that comes first; None if none can be trained."""
    best = advise(situation)[0]
    return best.method if best.is_possible else None
