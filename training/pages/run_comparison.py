"""The page that compares up to four training runs: results and curves first, then the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub import charts
from adapterhub.core.errors import Invalid
from training.models import Dataset, TrainingRun
from training.models.hyperparameters import TABLE, Hyperparameter
from training.pages.curves import FRAME, NAMES, Rows
from training.pages.runs import OTHERS, find, named
from training.runs.specification import body_of, flat

MOST_RUNS = 4
PREFIX = "hyperparameters."
LABELS = {
    "base_model": "base model",
    "rank_analysis": "ranks planned by the analysis",
    "start_values": "start values of the analysis",
    "budget.uniform_rank": "budget of the plan, as a uniform rank",
    "validation_dataset": "evaluated on",
    "rslora": "rank-stabilised scale (rsLoRA)",
    "as_chat": "read as chats",
    "eval_tokens": "held-out tokens to evaluate on",
    "eval_steps": "steps between two held-out losses",
    "checkpoint_steps": "steps between two checkpoints",
    "lora_dropout": "LoRA dropout",
    "init": "start of A",
}
DATASETS = ("dataset", "validation_dataset")


@login_required
def compare_runs(request: HttpRequest, pk: str) -> HttpResponse:
    """Show runs side by side: results, curves in one frame each, settings that differ, and equal ones collapsed.

    `to` in the query names up to three other runs. Raises Invalid for more, and Http404 for one that the person does
    not see.
    """
    first = find(request, pk)
    others = [find(request, named(key)) for key in request.GET.getlist("to") if key]
    compared = list({run.pk: run for run in (first, *others)}.values())
    if len(compared) > MOST_RUNS:
        raise Invalid(f"Compare up to {MOST_RUNS} runs: name at most {MOST_RUNS - 1} others.", field="to")
    near = TrainingRun.objects.filter(project=first.project).exclude(pk=first.pk).select_related("adapter__project")
    rows = settings_of(compared)
    context = {
        "job": first,
        "runs": [{"run": run, "letter": letter} for run, letter in zip(compared, "ABCD", strict=False)],
        "others": near[:OTHERS],
        "different": [row for row in rows if not row["same"]],
        "same": [row for row in rows if row["same"]],
        "curves": curves_of(compared),
        "best": best_of(compared),
        "is_comparable": len({evaluated_on(run) for run in compared if run.loss_after is not None}) < 2,
    }
    return render(request, "training/compare_runs.html", context)


def evaluated_on(run: TrainingRun) -> tuple[int, int]:
    """Return (key of the dataset, number of tokens): two held-out losses can be compared if these are equal."""
    return run.validation_dataset_id or run.dataset_id, run.hyperparameters.get("eval_tokens", 0)


def best_of(runs: Sequence[TrainingRun]) -> TrainingRun | None:
    """Return the run with the lowest held-out loss; None unless two or more were measured, all on the same rows."""
    measured = [run for run in runs if run.loss_after is not None]
    if len(measured) < 2 or len({evaluated_on(run) for run in measured}) > 1:
        return None
    return min(measured, key=lambda run: run.loss_after or 0.0)


def settings_of(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return a row for each requested setting, with every run's value in words and whether they are the same."""
    bodies = [flat(body_of(run)) for run in runs]
    names = dict.fromkeys(name for body in bodies for name in body)
    datasets = Dataset.objects.filter(pk__in={body[key] for body in bodies for key in DATASETS if body.get(key)})
    titles = dict(datasets.values_list("pk", "name"))
    return [
        {
            "label": label_of(name),
            "meaning": meaning_of(name),
            "values": [in_words(name, body.get(name), titles) for body in bodies],
            "same": all(body.get(name) == bodies[0].get(name) for body in bodies),
        }
        for name in names
    ]


def label_of(name: str) -> str:
    """Return the label of a setting as the page shows it."""
    own = name.removeprefix(PREFIX)
    return LABELS.get(own, own.replace("_", " ").replace(".", ", "))


def meaning_of(name: str) -> str:
    """Return the explanation of a hyperparameter; "" for other settings."""
    own = name.removeprefix(PREFIX)
    return TABLE[own].meaning if name.startswith(PREFIX) and own in TABLE else ""


def in_words(name: str, value: Any, titles: dict[int, str]) -> str:
    """Return a setting's value in words: names for datasets, yes and no for switches.

    `titles` maps datasets' keys to their names.
    """
    if value is None:
        return "not named"
    if name in DATASETS:
        return titles.get(value, str(value))
    if name == "mixture":
        return ", ".join(" ".join(str(part) for part in each.values()) for each in value)
    entry = TABLE.get(name.removeprefix(PREFIX))
    if isinstance(entry, Hyperparameter) and isinstance(entry.default, int) and (entry.least, entry.most) == (0, 1):
        return "yes" if value else "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def curves_of(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return a chart for each quantity that a run logged at two steps or more, with the curves of all runs."""
    logged: list[Rows] = [list(run.metrics.values_list("step", "values")) for run in runs]
    frames = [(name, [known(rows, name) for rows in logged]) for name in NAMES]
    return [
        {"title": NAMES[name], **charts.overlay(FRAME, series)}
        for name, series in frames
        if any(len(points) > 1 for points in series)
    ]


def known(rows: Rows, name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of one quantity; memory is in GB."""
    scale = 1e-9 if name == "memory_bytes" else 1
    return [(step, values[name] * scale) for step, values in rows if values.get(name) is not None]
