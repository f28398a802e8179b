"""The commands that make and measure versions: analyze, train, eval."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from adapterhub.cli.datasets import dataset_of
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import LONGEST_S, AsJson, Project, Timeout, Wait, hub, project_of, say
from adapterhub.cli.waiting import until_ended
from adapterhub.client import Client, calls

Data = Annotated[str, typer.Option("--dataset", help="Number of a dataset, or a file to upload.")]
Mix = Annotated[
    list[str],
    typer.Option("--mix", metavar="DATASET=WEIGHT", help="Mix in a dataset; --dataset has the weight 1. Repeatable."),
]
Settings = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="A setting; can be repeated.")]


def mixed(api: Client, project: str, pair: str, timeout_s: float) -> dict[str, Any]:
    """Return {dataset: id, weight} of a text `DATASET=WEIGHT`; a named file is uploaded.

    Raises Ended for a text of another form.
    """
    data, _, weight = pair.rpartition("=")
    try:
        return {"dataset": dataset_of(api, project, data, timeout_s), "weight": float(weight)}
    except ValueError:
        raise Ended(f"--mix {pair!r} is not DATASET=WEIGHT, such as 12=0.5.", Exit.USAGE) from None


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """Return `name=value` pairs as a dict; each value is parsed as JSON or, if that fails, text.

    Raises Ended for a pair of another form.
    """
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Ended(f"{pair!r} is not NAME=VALUE.", Exit.USAGE)
        parsed[name] = value_of(value)
    return parsed


def value_of(text: str) -> Any:
    """Return the text parsed as JSON; if that fails, the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def analyze(
    base_model: Annotated[str, typer.Option("--base-model")],
    dataset: Data,
    budget: Annotated[str, typer.Option(help="uniform_rank=8, parameters=N or bytes=N.")] = "uniform_rank=8",
    preset: Annotated[str, typer.Option()] = "default",
    settings: Settings = [],  # noqa: B006 - typer reads the default, nobody changes it
    project: Project = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Plan the ranks of every module before training."""
    with hub() as api:
        owner = project_of(api, project)
        fields = settings_of(settings)
        data = dataset_of(api, owner, dataset, timeout)
        analysis = api.send(calls.analyze(owner, base_model, data, settings_of([budget]), preset=preset, **fields))
        if wait:
            analysis = until_ended(api, calls.rank_analysis(analysis["id"]), "rank analysis", timeout)
    say(analysis, f"{analysis['id']} {analysis['status']}", as_json)


def train(
    adapter: Annotated[str, typer.Argument(help="The adapter that gets a new version.")],
    dataset: Data,
    method: Annotated[str, typer.Option(help="lora, qlora, dora, adalora, galore, full, dpo, kto or orpo.")] = "lora",
    analysis: Annotated[str, typer.Option(help="Id of a rank analysis whose ranks are used.")] = "",
    settings: Settings = [],  # noqa: B006 - typer reads the default, nobody changes it
    mix: Mix = [],  # noqa: B006 - typer reads the default, nobody changes it
    validation: Annotated[str, typer.Option(help="Dataset whose rows are all evaluated on: number or file.")] = "",
    anyway: Annotated[bool, typer.Option(help="Start even if the preflight check says that it will not fit.")] = False,
    project: Project = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Train a new version; set hyperparameters with --set steps=200 --set learning_rate=0.0002."""
    fields: dict[str, Any] = {"method": method, "hyperparameters": settings_of(settings), "anyway": anyway}
    with hub() as api:
        owner = project_of(api, project)
        planned: dict[str, Any] = {"rank_analysis": analysis} if analysis else {}
        if mix:
            planned["mixture"] = [mixed(api, owner, pair, timeout) for pair in mix]
        if validation:
            planned["validation_dataset"] = dataset_of(api, owner, validation, timeout)
        run = api.send(calls.train(owner, adapter, dataset_of(api, owner, dataset, timeout), **fields, **planned))
        if wait:
            run = until_ended(api, calls.training_run(run["id"]), f"training {adapter}", timeout)
    say(run, f"{run['id']} {run['status']} {run['version'] or ''}".strip(), as_json)


def evaluate(
    version: Annotated[str, typer.Argument(help="Served name.")],
    dataset: Data = "",
    task: Annotated[str, typer.Option(help="A task of lm-eval that the operator offers, in place of --dataset.")] = "",
    at_least: Annotated[
        list[str], typer.Option(metavar="METRIC=NUMBER", help="With --task and --wait: the least score. Repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    against: Annotated[str, typer.Option(help="Served name of the version to compare with.")] = "",
    variant: Annotated[
        str, typer.Option(help="A declared variant of its base model, whose cost in loss is measured, too.")
    ] = "",
    project: Project = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Measure a version on held-out rows, or on a task of lm-eval.

    --wait exits with 6 when it is measured to be worse than --against, or below a score of --at-least.
    """
    least = least_scores(at_least)
    if bool(dataset) == bool(task) or (least and not (task and wait)):
        raise Ended("Give --dataset or --task, and --at-least only with --task and --wait.", Exit.USAGE)
    with hub() as api:
        owner = project_of(api, project)
        other = {name: value for name, value in (("against", against), ("variant", variant)) if value}
        rows = dataset_of(api, owner, dataset, timeout) if dataset else None
        evaluation = api.send(calls.evaluate(owner, version, rows, **({"task": task} if task else {}), **other))
        if wait:
            evaluation = until_ended(api, calls.evaluation(evaluation["id"]), f"evaluation of {version}", timeout)
    say(evaluation, f"{evaluation['id']} {evaluation['status']}", as_json)
    require_no_worse(evaluation.get("metrics") or {}, version, against)
    require_scores(evaluation.get("metrics") or {}, version, least)


def least_scores(pairs: list[str]) -> dict[str, float]:
    """Parse `METRIC=NUMBER` pairs to {metric: number}. Raises Ended for a pair of another form."""
    try:
        return {name: float(number) for name, _, number in (pair.rpartition("=") for pair in pairs)}
    except ValueError:
        raise Ended(f"--at-least {' '.join(pairs)!r} is not METRIC=NUMBER, such as acc=0.6.", Exit.USAGE) from None


def require_scores(metrics: dict[str, Any], version: str, least: dict[str, float]) -> None:
    """Check the scores of a task of lm-eval. Raises Ended for one that is missing or too low."""
    scores = metrics.get("scores") or {}
    for name, number in least.items():
        if name not in scores:
            raise Ended(f"The task has no metric {name}; it has {', '.join(scores)}.", Exit.REFUSED)
        if scores[name] < number:
            raise Ended(f"{name} of {version} is {scores[name]:.4g}, below {number:g}.", Exit.REFUSED)


def require_no_worse(metrics: dict[str, Any], version: str, against: str) -> None:
    """Raise Ended if the version is measured to be worse than `against`, by the same rule as for a promotion.

    It is worse when the whole interval of the difference in loss is above zero.
    """
    change = (metrics.get("differences") or {}).get("against")
    if change and change["low"] > 0:
        interval = f"{change['low']:.3f} to {change['high']:.3f}"
        raise Ended(f"{version} is worse than {against}: its loss is {interval} higher (95 %).", Exit.REFUSED)
