"""A rollout's minutes become one action and sentences an on-call person can act on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from registry.experiments.confidence_sequences import Sample
from registry.experiments.guardrails import Action, Analysis, Arm, Guardrail, Kind, Minute, Values, analysis
from registry.experiments.quantiles import Histogram
from registry.experiments.sample_ratio import Exposure

START = datetime(2026, 1, 5, 3, 0, tzinfo=UTC)
LENGTH = 30  # minutes
NOW = START + timedelta(minutes=LENGTH)
ERRORS = Guardrail("error rate", margin=2.0)
TTFT = Guardrail("time to first token", margin=0.2, unit="seconds", level=0.95)


def failing(arm: Arm, rate: float, *, metric: str = "error rate", until: int = LENGTH) -> list[Minute]:
    """100 requests a minute; a baseline lies before the rollout."""
    first = START - timedelta(minutes=LENGTH) if arm is Arm.BASELINE else START
    values = Values(Sample.of_failures(100, 100 * rate))
    return [Minute(first + timedelta(minutes=number), arm, metric, values) for number in range(until)]


def timed(arm: Arm, typical_s: float) -> list[Minute]:
    rng = np.random.default_rng(1)
    draws = typical_s * rng.lognormal(0, 0.3, (LENGTH, 100))
    values = [Values(histogram=Histogram.of(draw)) for draw in draws]
    return [Minute(START + timedelta(minutes=number), arm, TTFT.metric, value) for number, value in enumerate(values)]


def judged(minutes: list[Minute], *guardrails: Guardrail, now: datetime = NOW, **more: object) -> Analysis:
    return analysis(minutes, guardrails or (ERRORS,), started=START, now=now, **more)  # type: ignore[arg-type]


def both(control: float, candidate: float, metric: str = "error rate") -> list[Minute]:
    return failing(Arm.CONTROL, control, metric=metric) + failing(Arm.CANDIDATE, candidate, metric=metric)


@pytest.mark.parametrize(
    ("kind", "action"),
    [(Kind.GUARDRAIL, Action.ROLL_BACK), (Kind.SIGNAL, Action.PAUSE), (Kind.GOAL, Action.WAIT)],
)
def test_what_a_bad_verdict_does_is_said_by_its_kind(kind: Kind, action: Action) -> None:
    analysis = judged(both(0.05, 0.12), Guardrail("error rate", margin=2.0, kind=kind))
    assert analysis.action is action
    assert analysis.findings[0].verdict == "bad"


def test_the_reason_is_a_sentence_with_numbers_and_units() -> None:
    [reason] = judged(both(0.05, 0.12)).reasons
    assert reason == (
        "error rate: the candidate is worse than the control by more than the margin of 2 points "
        "(from 4.78 points worse to 9.22 points worse)."
    )


def test_every_metric_good_promotes_and_one_undecided_waits() -> None:
    equal = both(0.02, 0.02)
    assert judged(equal).action is Action.PROMOTE
    strict = Guardrail("error rate", margin=0.1, kind=Kind.GOAL)
    analysis = judged(equal, ERRORS, strict)
    assert analysis.action is Action.WAIT
    assert "not decided yet" in analysis.reasons[0]


def test_rolling_back_goes_before_pausing() -> None:
    minutes = both(0.05, 0.12) + both(0.05, 0.12, "refusals")
    analysis = judged(minutes, Guardrail("refusals", margin=2.0, kind=Kind.SIGNAL), ERRORS)
    assert analysis.action is Action.ROLL_BACK
    assert [reason.split(":")[0] for reason in analysis.reasons] == ["error rate"]


def test_an_outage_of_the_control_too_pauses() -> None:
    minutes = failing(Arm.BASELINE, 0.01) + both(0.30, 0.40)
    analysis = judged(minutes)
    assert analysis.action is Action.PAUSE
    assert "an outage, not the candidate" in analysis.reasons[0]
    assert judged(failing(Arm.BASELINE, 0.01) + both(0.01, 0.40)).action is Action.ROLL_BACK


def test_a_metric_that_stops_pauses_and_names_the_arm() -> None:
    minutes = failing(Arm.CONTROL, 0.02) + failing(Arm.CANDIDATE, 0.02, until=LENGTH - 6)
    analysis = judged(minutes)
    assert (analysis.action, analysis.reasons) == (
        Action.PAUSE,
        ["error rate: nothing from the candidate for 5 minutes."],
    )


def test_no_traffic_pauses_only_after_the_first_minutes() -> None:
    assert judged([], now=START + timedelta(minutes=4)).action is Action.WAIT
    analysis = judged([])
    assert analysis.action is Action.PAUSE
    assert "nothing from the control and the candidate" in analysis.reasons[0]
    assert judged([], Guardrail("score", margin=1, kind=Kind.GOAL)).action is Action.WAIT


def test_silence_does_not_save_a_candidate_that_was_bad() -> None:
    minutes = failing(Arm.CONTROL, 0.05) + failing(Arm.CANDIDATE, 0.30, until=LENGTH - 6)
    assert judged(minutes).action is Action.ROLL_BACK


def test_a_wrong_split_pauses_a_rollout_that_looks_good() -> None:
    analysis = judged(both(0.02, 0.02), exposures=[Exposure(6000, 4000, 0.5)])
    assert analysis.action is Action.PAUSE
    assert "do not get the share of users" in analysis.reasons[0]
    assert judged(both(0.02, 0.02), exposures=[Exposure(5010, 4990, 0.5)]).action is Action.PROMOTE


def test_a_slow_tail_is_rolled_back_and_an_equal_one_is_good() -> None:
    assert judged(timed(Arm.CONTROL, 0.5) + timed(Arm.CANDIDATE, 1.0), TTFT).action is Action.ROLL_BACK
    assert judged(timed(Arm.CONTROL, 0.5) + timed(Arm.CANDIDATE, 0.5), TTFT).action is Action.PROMOTE


def test_less_can_be_worse() -> None:
    praise = Guardrail("thumbs up", margin=2.0, less_is_worse=True)
    assert judged(both(0.80, 0.60, "thumbs up"), praise).action is Action.ROLL_BACK
    assert judged(both(0.60, 0.80, "thumbs up"), praise).action is Action.PROMOTE


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Guardrail("errors", margin=-1), "errors: the margin must be 0 or more, not -1"),
        (lambda: Guardrail("ttft", 1, "seconds", level=95), "ttft: level must be between 0 and 1, not 95"),
        (lambda: Guardrail("errors", 1, level=0.95), "errors: a quantile is in seconds, not points"),
        (lambda: analysis([], [], started=START, now=NOW), "at least one guardrail"),
        (lambda: judged([], alpha=0.0), "alpha must be between 0 and 1, not 0.0"),
    ],
)
def test_bad_input_is_named(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
