"""Preflight of a run before it is queued: memory, time, disk, and the jobs ahead of it in the queue."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from django.db.models import Q

from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import LEASED, JobStatus
from training.models.device import Device
from training.models.job import kinds
from training.models.training_run import TrainingRun
from training.planning import sizing
from training.planning.memory_estimator import GB, Plan, Shape, estimate, largest_batch

UNKNOWN = "unknown"
PAST_RUNS = 5
# The trainer keeps two, and writes a third before it removes the oldest.
CHECKPOINTS = 3


def check(run: TrainingRun) -> dict[str, Any]:
    """Return memory, disk, time and queue of the run, each with a verdict or number and a reason. Stores nothing."""
    return {**needs(run), "time": time(run), "queue": queue(run)}


def needs(run: TrainingRun) -> dict[str, Any]:
    """Estimate memory and disk on the largest known device; reads no file."""
    device = sizing.largest_device()
    shape = sizing.shape_of(run.base_model.config)
    on_gpu = device is None or device.kind == Device.Kind.CUDA
    plan = sizing.plan_of(run.method, run.hyperparameters, on_gpu=on_gpu)
    return {"memory": memory(shape, plan, device), "disk": disk(shape, plan, device)}


def require(run: TrainingRun) -> None:
    """Raise Invalid with the nearest fix when the run will not fit."""
    for part, need in needs(run).items():
        if need["verdict"] == "will not fit":
            text = f"{need['text']} Change it, or queue it with anyway = true."
            raise Invalid(text, field=part, code="will_not_fit")


def memory(shape: Shape, plan: Plan, device: Device | None) -> dict[str, Any]:
    """Compare the memory that the run needs with the device's."""
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
    mean = sizing.mean_tokens(run.dataset, run.base_model, whole=True)
    if mean is None:
        return None
    length: float = chosen["max_length"] if chosen["packing"] else min(mean, chosen["max_length"])
    sequences: int = chosen["steps"] * chosen["batch_size"] * chosen["gradient_accumulation"] * run.devices
    return round(sequences * length)


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
