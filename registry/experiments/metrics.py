"""Metrics of an answer: their names, units, and computation from a router's report or from feedback. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from serving_client.reports import MeasuredAnswer


@dataclass(frozen=True)
class Metric:
    """A metric's label and unit: "points" for a rate of zeros and ones, "seconds" for one that also has quantiles.

    With `less_is_worse` a lower value is the worse one, else a higher one.
    """

    label: str
    unit: str
    less_is_worse: bool = False


METRICS = {
    "error_rate": Metric("error rate", "points"),
    "ttft": Metric("time to first token", "seconds"),
    "latency": Metric("latency", "seconds"),
    "tokens_per_second": Metric("tokens a second", "tokens", less_is_worse=True),
    "length": Metric("length of the answer", "tokens"),
    "empty_rate": Metric("empty answers", "points"),
    "refusal_rate": Metric("refusals", "points"),
    "format_failure_rate": Metric("answers of the wrong format", "points"),
    "difference_rate": Metric("answers that differ from the stable version's", "points"),
    "cost": Metric("tokens of question and answer", "tokens"),
    "bad_feedback_rate": Metric("bad feedback", "points"),
    "feedback_score": Metric("feedback score", "score", less_is_worse=True),
    "judge_score": Metric("judge's score", "score", less_is_worse=True),
}
UNSEEN_ALONE = {"difference_rate"}
SEEN_ALONE = {"ttft", "tokens_per_second", "bad_feedback_rate", "feedback_score", "judge_score"}
FAILED = 500  # statuses from here on are the server's fault
HINTS = {"empty_rate": "empty", "refusal_rate": "refusal", "format_failure_rate": "format_failure"}


def is_measured(metric: str, *, unseen: bool) -> bool:
    """Return True if the metric is measured in a shadow step, if `unseen`, or else in a step that serves users.

    `metric` is a key of METRICS.
    """
    return metric not in (SEEN_ALONE if unseen else UNSEEN_ALONE)


def of_report(report: MeasuredAnswer) -> dict[str, float]:
    """Return the metric values, by name, of a router's report on one answer.

    Metrics that the report lacks are left out. An answer of status 500 or above gives only error_rate 1; a client's
    error (4xx) gives nothing, because it says nothing about the candidate.
    """
    if report.status >= FAILED:
        return {"error_rate": 1.0}
    return {"error_rate": 0.0, **of_answer(report)} if report.status < 400 else {}


def of_answer(report: MeasuredAnswer) -> dict[str, float]:
    """Return the metrics of one answered request: rates as 0 or 1, latency in seconds, length and cost in tokens.

    An answer without tokens counts as empty unless the report says otherwise.
    """
    hints = {metric: getattr(report, key) for metric, key in HINTS.items()}
    if hints["empty_rate"] is None:
        hints["empty_rate"] = report.completion_tokens == 0
    values = {metric: float(hint) for metric, hint in hints.items() if hint is not None}
    if report.differs is not None:
        values["difference_rate"] = float(report.differs)
    length, prompt_length = float(report.completion_tokens), float(report.prompt_tokens)
    return {
        **values,
        "latency": report.total_ms / 1000,
        "length": length,
        "cost": prompt_length + length,
        **paced(report),
    }


def paced(report: MeasuredAnswer) -> dict[str, float]:
    """Return the timings that only a streamed answer has: time to first token, in seconds, and tokens per second.

    The latter is left out if no time passed after the first token. Empty for an answer that was not streamed.
    """
    if report.ttft_ms is None:
        return {}
    rest_s = (report.total_ms - report.ttft_ms) / 1000
    speed = {"tokens_per_second": report.completion_tokens / rest_s} if rest_s > 0 else {}
    return {"ttft": report.ttft_ms / 1000, **speed}


def of_feedback(outcome: str | None, score: float | None) -> dict[str, float]:
    """Return the metrics of one feedback: bad_feedback_rate as 0 or 1 if it has an outcome, the score if it has one."""
    values = {"bad_feedback_rate": float(outcome == "bad")} if outcome else {}
    return values if score is None else {**values, "feedback_score": score}
