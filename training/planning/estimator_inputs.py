"""Inputs of the pure estimator and adviser from database rows, and their answers as dicts for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from adapterhub.artifacts import ArtifactError
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import BaseModel
from training.datasets.row_preview import NotReadable, readable
from training.lm.preference import unpaired
from training.models.dataset import Dataset
from training.models.device import Device
from training.models.rank_analysis import RankAnalysis
from training.planning import memory_estimator, method_adviser
from training.planning.memory_estimator import Plan, Shape

SAMPLED_ROWS = 2000


def shape_of(config: Mapping[str, Any], field: str = "base_model") -> Shape:
    """Return the shape of a model from its configuration.

    Raises Invalid, which blames `field`, if it is not a decoder of the Llama kind.
    """
    try:
        return Shape.of(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise Invalid(
            f"The configuration lacks {error}: the estimator knows decoders of the Llama kind.",
            field=field,
            code="unknown_shape",
        ) from None


def named_shape(name: str) -> Shape:
    """Return the shape of a published model in KNOWN, or of a registered base model that is ready.

    Raises Invalid for other names, and for a model that is not a decoder of the Llama kind.
    """
    if name in memory_estimator.KNOWN:
        return shape_of(memory_estimator.KNOWN[name])
    model = BaseModel.objects.ready().filter(slug=name).first()
    if model is None:
        there = ", ".join(memory_estimator.KNOWN)
        raise Invalid(
            f"There is no base model {name!r}; name a registered one, or {there}.", field="base_model", code="unknown"
        )
    return shape_of(model.config)


def plan_of(method: str, chosen: Mapping[str, Any], *, on_gpu: bool = True, parameters: int = 0) -> Plan:
    """Return the estimator's plan for the hyperparameters `chosen`; a value takes 2 bytes on a GPU and 4 on a CPU.

    `parameters` is the number of the adapter's parameters if its ranks are planned; 0 means the same rank everywhere.
    Raises KeyError for a hyperparameter that is missing.
    """
    return Plan(
        method,
        rank=chosen["rank"],
        batch_size=chosen["batch_size"],
        length=chosen["max_length"],
        recompute=bool(chosen["recompute"]),
        devices=chosen["devices"],
        sharded=bool(chosen["sharded"]),
        galore_rank=chosen["galore_rank"],
        value_bytes=2 if on_gpu else 4,
        parameters=parameters,
    )


def largest_device() -> Device | None:
    """Return the device with the most memory that a worker reported recently; None if there is none."""
    return Device.objects.alive().order_by("-memory_bytes").first()


def estimates(shape: Shape, plan: Plan, device_bytes: float | None) -> list[dict[str, Any]]:
    """Return a row for each method: total bytes on each device, the parts, and a verdict.

    The verdict is None if the device's bytes are not known.
    """
    return [
        {
            "method": method,
            "bytes": round(estimate.total),
            "parts": [{"name": name, "bytes": round(size)} for name, size in estimate.parts().items()],
            "verdict": estimate.verdict(device_bytes) if device_bytes else None,
        }
        for method, estimate in memory_estimator.every_method(shape, plan).items()
    ]


def verdicts(shape: Shape, plan: Plan, device_bytes: float | None) -> dict[str, str] | None:
    """Return the verdict for each method by name; None if the device's bytes are not known."""
    if not device_bytes:
        return None
    return {
        name: estimate.verdict(device_bytes) for name, estimate in memory_estimator.every_method(shape, plan).items()
    }


def situation(
    shape: Shape,
    plan: Plan,
    device_bytes: float | None,
    dataset: Dataset | None,
    model: BaseModel | None,
    **stated: Any,
) -> method_adviser.Situation:
    """Return the adviser's inputs; those that are not known are None.

    Tokens are counted by the model's tokenizer; the divergence comes from the newest analysis that measured it.
    `stated` are inputs that the user gives.
    """
    return method_adviser.Situation(
        rows=dataset.splits["train"] if dataset else None,
        targets=targets(dataset, model) if dataset and model else None,
        divergence=divergence(dataset, model) if dataset and model else None,
        verdicts=verdicts(shape, plan, device_bytes),
        devices=plan.devices,
        rank_parameters=shape.adapter_parameters(1),
        rank=plan.rank,
        planned=plan.parameters,
        kind=dataset.kind if dataset else "answers",
        **stated,
    )


def divergence(dataset: Dataset, model: BaseModel) -> float | None:
    """Return the modules' mean divergence, in nats per channel, from the newest analysis that measured it.

    Else None.
    """
    finished = RankAnalysis.objects.filter(dataset=dataset, base_model=model, status=JobStatus.SUCCEEDED)
    for plan in finished.values_list("plan", flat=True):
        modules: list[dict[str, Any]] = plan["modules"]
        divergences = [float(module["divergence"]) for module in modules if module.get("divergence") is not None]
        if divergences:
            return sum(divergences) / len(divergences)
    return None


def targets(dataset: Dataset, model: BaseModel) -> int | None:
    """Return an estimate of the training split's completion tokens from its first rows.

    None if they cannot be counted.
    """
    mean = mean_tokens(dataset, model)
    return None if mean is None else round(mean * dataset.splits["train"])


def mean_tokens(dataset: Dataset, model: BaseModel, *, whole: bool = False) -> float | None:
    """Return the mean number of tokens of a row's text that the loss counts, or of the `whole` row.

    None without a tokenizer, or if the data is lost.
    """
    tokenizer = model.folder / "tokenizer.json"
    try:
        return counted(dataset.digest, tokenizer, whole) if tokenizer.is_file() else None
    except ArtifactError:
        return None


@lru_cache(maxsize=256)
def counted(digest: str, tokenizer: Path, whole: bool) -> float | None:
    """Return the mean number of tokens of a dataset's first rows, cached, because verifying the dataset takes long.

    With `whole` all tokens of a row count, otherwise those that the loss counts. None if the tokenizer cannot be read.
    Raises ArtifactError if the store has lost the dataset.
    """
    from tokenizers import Tokenizer

    try:
        with readable(tokenizer.parent):
            read = Tokenizer.from_file(str(tokenizer))
    except NotReadable:
        return None
    with (Dataset(digest=digest).folder() / "train.jsonl").open("rb") as stream:
        texts = [text_of(json.loads(line), whole) for line in islice(stream, SAMPLED_ROWS)]
    encoded = read.encode_batch(texts, add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encoded) / max(len(encoded), 1)


def text_of(row: dict[str, Any], whole: bool) -> str:
    """Return the text that the loss counts (completion, assistant's turns or text), or with `whole` the whole row.

    For a pair it is both answers, with `whole` each after the prompt.
    """
    if "chosen" in row:
        return "\n".join(text_of(side, whole) for side in unpaired([row]))
    if isinstance(row.get("completion"), list):
        before = row["prompt"] if whole and isinstance(row.get("prompt"), list) else []
        turns = [*before, *row["completion"]]
        return text_of({"messages": turns, "tools": row.get("tools")}, whole)
    if "messages" in row:
        turns = [turn for turn in row["messages"] if whole or turn["role"] == "assistant"]
        return "\n".join(said_in(turn) for turn in [*turns, {"tools": row.get("tools")}][: None if whole else -1])
    prompt = row.get("prompt", "") if whole else ""
    return f"{prompt}{row.get('completion') or row.get('text') or ''}"


def said_in(turn: dict[str, Any]) -> str:
    """Return the texts of a turn, each on its own line: its reasoning, content, calls and tools."""
    structured = [json.dumps(turn[name]) for name in ("tool_calls", "tools") if turn.get(name)]
    return "\n".join([*(turn[name] for name in ("reasoning_content", "content") if turn.get(name)), *structured])


def advice(situation: method_adviser.Situation) -> dict[str, Any]:
    """Return the adviser's ranking and the inputs on which it is based, as a dict for JSON."""
    return {
        "methods": [
            {
                "method": each.method,
                "points": each.points,
                "possible": each.is_possible,
                "reasons": [reason.__dict__ for reason in each.reasons],
            }
            for each in method_adviser.advise(situation)
        ],
        "would_change": method_adviser.what_would_change_it(situation),
        "rank": method_adviser.rank_for(situation) if situation.targets else None,
        "known": {"rows": situation.rows, "targets": situation.targets, "divergence": situation.divergence},
    }
