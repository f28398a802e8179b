"""Preflight of a run before it is queued: memory, time, disk, and the jobs ahead of it in the queue."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from django.db.models import Q

from adapterhub.artifacts import ArtifactError
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import LEASED, JobStatus
from training.datasets.measuring import Sample, sample_of
from training.datasets.rendering import NoTokenizer, NotReadable
from training.models.dataset import Dataset
from training.models.device import Device
from training.models.job import kinds
from training.models.training_run import TrainingRun
from training.planning import sizing
from training.planning.memory_estimator import GB, Plan, Shape, estimate, largest_batch

UNKNOWN = "unknown"
PAST_RUNS = 5
# The trainer keeps two, and writes a third before it removes the oldest.
CHECKPOINTS = 3
UNSEEN_MARGIN = 1.25


def check(run: TrainingRun) -> dict[str, Any]:
    """Return data, memory, disk, time and queue of the run, each with a verdict or number and a reason."""
    return {"data": data(run), **needs(run), "time": time(run), "queue": queue(run)}


def needs(run: TrainingRun) -> dict[str, Any]:
    """Estimate memory and disk on the largest known device, for rows as long as the data's."""
    device = sizing.largest_device()
    shape = sizing.shape_of(run.base_model.config)
    on_gpu = device is None or device.kind == Device.Kind.CUDA
    chosen = {**run.hyperparameters, "max_length": row_length(run)}
    plan = sizing.plan_of(run.method, chosen, on_gpu=on_gpu)
    return {"memory": memory(shape, plan, device), "disk": disk(shape, plan, device)}


def require_trainable(run: TrainingRun) -> None:
    """Raise Invalid if the run would train on nothing, or on rows longer than its model reads."""
    require_length(run)
    sample = sample_for(run)
    if sample is not None and sample.cut_to(run.hyperparameters["max_length"])["left_out"] == sample.rows:
        message = (
            f"No row of {run.dataset} can be trained: no answer that the loss counts begins within "
            f"{run.hyperparameters['max_length']} tokens. Raise max_length, or shorten the prompts."
        )
        raise Invalid(message, field="hyperparameters.max_length", code="nothing_to_train")


def require_length(run: TrainingRun) -> None:
    """Raise Invalid for a max_length above the positions that the base model knows."""
    limit = run.base_model.config.get("max_position_embeddings")
    if isinstance(limit, int) and run.hyperparameters["max_length"] > limit:
        message = f"{run.base_model} reads at most {limit} tokens: lower max_length to that."
        raise Invalid(message, field="hyperparameters.max_length", code="max_length_over_model")


def sample_for(run: TrainingRun) -> Sample | None:
    """Return a sample of the rows in the base model's tokens; None without a tokenizer or without the data.

    Raises Invalid when the model cannot render a row: its chat template refuses it, or leaves out what it says.
    """
    run.dataset.require_ready()
    try:
        model, rows = run.base_model, run.dataset.splits["train"]
        return sampled(run.dataset.digest, model.folder, model.digest, rows, bool(run.hyperparameters.get("as_chat")))
    except (NoTokenizer, ArtifactError):
        return None
    except NotReadable as error:
        raise Invalid(str(error), field="dataset", code="not_readable") from None


@lru_cache(maxsize=64)
def sampled(digest: str, model: Path, model_digest: str, rows: int, in_chat: bool) -> Sample:
    """Sample a dataset, cached by the digests: to verify it all takes as long as to read it.

    Raises NotReadable, and ArtifactError when the store has lost the dataset.
    """
    return sample_of(Dataset(digest=digest).folder() / "train.jsonl", model, model_digest, rows, in_chat=in_chat)


def data(run: TrainingRun) -> dict[str, Any]:
    """Return what max_length cuts of the rows, estimated from a sample."""
    sample, length = sample_for(run), run.hyperparameters["max_length"]
    if sample is None:
        return {"verdict": UNKNOWN, "text": "The rows cannot be read with this base model's tokenizer yet."}
    cuts = sample.cut_to(length)
    verdict = "will not fit" if cuts["left_out"] == sample.rows else "cut" if cuts["cut"] else "fits"
    reads = planned_rows(run, sample) / trainable_rows(run, sample)
    # A packed row holds several of the data's: how many, only the training knows.
    often = "" if run.hyperparameters["packing"] else f" The run reads the data {reads:.1f} times."
    text = f"{cuts_in_words(sample, length)}{often}{offer(run)}"
    return {
        **cuts,
        "rows": sample.rows,
        "reads": round(reads, 2),
        "longest": sample.longest,
        "verdict": verdict,
        "text": text,
    }


def offer(run: TrainingRun) -> str:
    """Return the advice to read prompts as chats, where the base model has a chat template and they are not."""
    is_plain = "completion" in run.dataset.columns and not run.hyperparameters.get("as_chat")
    if not is_plain or not run.base_model.template_digest:
        return ""
    return (
        " The base model has a chat template: as_chat = 1 renders prompts and completions by it, as chats are served."
    )


def cuts_in_words(sample: Sample, length: int) -> str:
    """Return in words what a length cuts of the rows."""
    cuts, about = sample.cut_to(length), "" if sample.is_whole else "about "
    if not cuts["cut"] and not cuts["left_out"]:
        return f"No row is longer than {length} tokens; the longest has {sample.longest}."
    return (
        f"Of {sample.rows:,} rows {about}{cuts['cut']:,} are cut at {length} tokens: {about}{cuts['left_out']:,} are "
        f"left out, as no counted answer begins before that, and {about}{cuts['without_end']:,} lose their end token."
    )


def row_length(run: TrainingRun) -> int:
    """Return the tokens of the longest row that a batch is padded to."""
    most: int = run.hyperparameters["max_length"]
    sample = sample_for(run)
    if sample is None or run.hyperparameters["packing"]:
        return most
    # Rows beyond the sample may be longer than those in it.
    margin = 1 if sample.is_whole else UNSEEN_MARGIN
    return max(1, min(most, round(margin * sample.longest)))


def require(run: TrainingRun) -> None:
    """Raise Invalid with the nearest fix when the run will not fit."""
    for part, need in needs(run).items():
        if need["verdict"] == "will not fit":
            text = f"{need['text']} Change it, or queue it with anyway = true."
            raise Invalid(text, field=part, code="will_not_fit")


def memory(shape: Shape, plan: Plan, device: Device | None) -> dict[str, Any]:
    """Compare the memory that the run needs with the device's; return bytes, parts, device, verdict and a sentence.

    The verdict is unknown without a device.
    """
    needed = estimate(shape, plan)
    parts = {name: round(size) for name, size in needed.parts().items()}
    answer = {"bytes": round(needed.total), "parts": parts, "device": str(device or ""), "device_bytes": None}
    if device is None:
        text = f"It needs {needed.total / GB:.3g} GB; no gpu worker has reported a device yet."
        return {**answer, "verdict": UNKNOWN, "text": text}
    verdict = needed.verdict(device.memory_bytes)
    text = f"It needs {needed.total / GB:.3g} GB of the {device.memory_bytes / GB:.3g} GB of {device}."
    if verdict != "fits":
        text += f" {hint(shape, plan, device.memory_bytes)}"
    return {**answer, "device_bytes": device.memory_bytes, "verdict": verdict, "text": text}


def hint(shape: Shape, plan: Plan, device_bytes: float) -> str:
    """Return the smallest change that makes the run fit the device."""
    if batch := largest_batch(shape, plan, device_bytes):
        return f"batch_size {batch} fits."
    if not plan.recompute and (batch := largest_batch(shape, replace(plan, recompute=True), device_bytes)):
        return f"With recompute = 1, batch_size {min(batch, plan.batch_size)} fits."
    smaller = replace(plan, method="qlora", recompute=True, batch_size=1)
    if plan.method != "qlora" and estimate(shape, smaller).verdict(device_bytes) == "fits":
        return "QLoRA with recompute = 1 and batch_size 1 fits."
    return "No batch fits: take a smaller base model, a shorter max_length, or shards on several devices."


def time(run: TrainingRun) -> dict[str, Any]:
    """Estimate the seconds from past runs of the same base model and method; None before there is one."""
    speeds = past_paces(run)
    tokens = planned_tokens(run)
    if not speeds or tokens is None:
        return {"seconds": None, "tokens": tokens, "text": "Not known before a run of this method on this base model."}
    speed = median(speeds)
    text = f"About {tokens:,} tokens at {speed:,.0f} a second, as in {len(speeds)} past runs."
    return {"seconds": round(tokens / speed, 1), "tokens": tokens, "tokens_per_second": speed, "text": text}


def past_paces(run: TrainingRun) -> list[float]:
    """Return the final tokens per second of the newest successful runs of the same model, method and device count."""
    alike = type(run).objects.filter(base_model=run.base_model, method=run.method, status=JobStatus.SUCCEEDED)
    paces = []
    for past in alike.filter(hyperparameters__devices=run.devices)[:PAST_RUNS]:
        last = past.metrics.last()
        if last and last.values.get("tokens_per_second"):
            paces.append(last.values["tokens_per_second"])
    return paces


def planned_tokens(run: TrainingRun) -> int | None:
    """Estimate the tokens that the run will read from the mean row length; None without a tokenizer."""
    chosen = run.hyperparameters
    sample = sample_for(run)
    if sample is None:
        return None
    length: float = chosen["max_length"] if chosen["packing"] else sample.mean_tokens(chosen["max_length"])
    return round(planned_rows(run, sample) * length)


def planned_rows(run: TrainingRun, sample: Sample) -> int:
    """Return the rows that the run reads: as often as its epochs say, else in its steps."""
    chosen = run.hyperparameters
    if chosen.get("epochs"):
        return int(chosen["epochs"]) * trainable_rows(run, sample)
    rows: int = chosen["steps"] * chosen["batch_size"] * chosen["gradient_accumulation"] * run.devices
    return rows


def trainable_rows(run: TrainingRun, sample: Sample) -> int:
    """Return the rows that are not left out."""
    return max(1, sample.rows - sample.cut_to(run.hyperparameters["max_length"])["left_out"])


def disk(shape: Shape, plan: Plan, device: Device | None) -> dict[str, Any]:
    """Estimate the disk for checkpoints with two moments of the trained weights, and for the final output."""
    whole = plan.method in ("full", "galore")
    trained = shape.parameters if whole else shape.adapter_parameters(plan.rank)
    needed = CHECKPOINTS * 12 * trained + 4 * trained
    if device is None:
        return {"bytes": needed, "free_bytes": None, "verdict": UNKNOWN, "text": f"{needed / GB:.3g} GB at most."}
    verdict = "fits" if needed <= 0.9 * device.disk_free_bytes else "will not fit"
    text = f"Checkpoints take up to {needed / GB:.3g} GB of {device.disk_free_bytes / GB:.3g} GB that are free."
    return {"bytes": needed, "free_bytes": device.disk_free_bytes, "verdict": verdict, "text": text}


def queue(run: TrainingRun) -> dict[str, Any]:
    """Count the jobs that are running, the jobs queued ahead of the run, and the devices."""
    before = Q(status=JobStatus.QUEUED, priority__gte=run.priority)
    ahead = sum(kind.objects.filter(before).exclude(pk=run.pk).count() for kind in kinds())
    running = sum(kind.objects.filter(status__in=LEASED).count() for kind in kinds())
    devices = Device.objects.alive().count()
    free = devices > running and not ahead
    text = "A device is free." if free else f"{running} running, {ahead} waiting before it, {devices} devices known."
    return {"ahead": ahead, "running": running, "devices": devices, "free": free, "text": text}
