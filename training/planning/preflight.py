"""Preflight check of a run before it is queued: data, memory, time, disk, and the jobs ahead of it in the queue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from django.db.models import Count, Q

from adapterhub.artifacts import ArtifactError
from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import LEASED, JobStatus
from registry.models import Replica
from training.datasets.row_preview import NoTokenizer, NotReadable, ReadingOfRows
from training.datasets.token_lengths import Sample, sample_of
from training.lm.token_sequences import ANSWERS
from training.models.dataset import Dataset
from training.models.device import Device
from training.models.job import kinds
from training.models.preference_methods import LEARNS_FROM
from training.models.training_run import TrainingRun
from training.planning import estimator_inputs
from training.planning.memory_estimator import GB, Plan, Shape, estimate, largest_batch

UNKNOWN = "unknown"
PAST_RUNS = 5
# The trainer keeps two, and writes a third before it removes the oldest.
CHECKPOINTS = 3
# The best weights so far, while better ones are written.
BEST_COPIES = 2
UNSEEN_MARGIN = 1.25
# What a refusal names, where it is not the part of the preflight.
FIELDS = {"serving": "hyperparameters.max_length"}


def check(run: TrainingRun) -> dict[str, Any]:
    """Return the preflight check of the run by part: data, memory, disk, serving, time and queue.

    Each part has a verdict or numbers, and a sentence. Raises Invalid if a dataset is not ready or the model
    cannot render a row, or for a base model whose shape the estimator does not know.
    """
    return {"data": data(run), **needs(run), "time": time(run), "queue": queue(run)}


def needs(run: TrainingRun) -> dict[str, Any]:
    """Return the verdicts on memory and disk of the largest known device, and on what engines serve.

    Memory is estimated for rows as long as the data's. Raises Invalid as `check` does.
    """
    device = estimator_inputs.largest_device()
    shape = estimator_inputs.shape_of(run.base_model.config)
    on_gpu = device is None or device.kind == Device.Kind.CUDA
    chosen = {**run.hyperparameters, "max_length": row_length(run)}
    plan = estimator_inputs.plan_of(run.method, chosen, on_gpu=on_gpu, parameters=run.planned_parameters())
    copies = BEST_COPIES if run.hyperparameters.get("eval_steps") else 0
    return {"memory": memory(shape, plan, device), "disk": disk(shape, plan, device, copies), "serving": serving(run)}


def serving(run: TrainingRun) -> dict[str, Any]:
    """Return {verdict, lengths, text} on max_length against the engines of the base model that may serve the project.

    `lengths` are those that the engines serve, in tokens, shortest first. It fits if all serve it, is tight if only
    some do, and is UNKNOWN if none has reported its length.
    """
    lengths = Replica.objects.lengths(run.base_model, run.project)
    length = run.hyperparameters["max_length"]
    if not lengths:
        return {
            "verdict": UNKNOWN,
            "lengths": [],
            "text": f"No engine of {run.base_model} has told its longest request.",
        }
    engines = f"the engines of {run.base_model}"
    if length > lengths[-1]:
        most = counted(lengths[-1], "token")
        text = f"max_length {length} is over what {engines} serve: {most}. Lower max_length to that."
        return {"verdict": "will not fit", "lengths": lengths, "text": text}
    if length > lengths[0]:
        text = f"Some of {engines} serve at most {counted(lengths[0], 'token')}: longer requests fail there."
        return {"verdict": "tight", "lengths": lengths, "text": text}
    return {
        "verdict": "fits",
        "lengths": lengths,
        "text": f"All {engines} serve {counted(lengths[0], 'token')} or more.",
    }


def require_trainable(run: TrainingRun) -> None:
    """Check that each dataset of the run has a row to train on, and that max_length is within the model's.

    Datasets whose rows cannot be measured pass. Raises Invalid, also as `parts_of` does.
    """
    require_length(run)
    length = run.hyperparameters["max_length"]
    for part in parts_of(run) or []:
        if part.trainable(length) == 0:
            message = (
                f"No row of {part.dataset} can be trained: no answer that the loss counts begins within "
                f"{counted(length, 'token')}. Raise max_length, or shorten the prompts."
            )
            raise Invalid(message, field="hyperparameters.max_length", code="nothing_to_train")


def require_length(run: TrainingRun) -> None:
    """Check that max_length does not exceed the base model's context length. Raises Invalid."""
    limit = run.base_model.config.get("max_position_embeddings")
    if isinstance(limit, int) and run.hyperparameters["max_length"] > limit:
        message = f"{run.base_model} reads at most {counted(limit, 'token')}: lower max_length to that."
        raise Invalid(message, field="hyperparameters.max_length", code="max_length_over_model")


@dataclass(frozen=True)
class Part:
    """A dataset of a run: its share (0 to 1) of the rows that are read, and a sample of its own rows."""

    dataset: Dataset
    share: float
    sample: Sample

    def trainable(self, length: int) -> int:
        """Return an estimate of how many rows a training with this max_length would read."""
        return self.sample.rows - self.sample.cut_to(length)["left_out"]


def parts_of(run: TrainingRun) -> list[Part] | None:
    """Return the run's datasets, its own first; None without a tokenizer, or if the data of one is missing.

    Raises Invalid if a dataset is not ready or the model cannot render a row.
    """
    mixed = run.parts()
    total = sum(part.weight for part in mixed)
    parts = []
    for part in mixed:
        sample = sample_for(run, part.dataset)
        if sample is None:
            return None
        parts.append(Part(part.dataset, part.weight / total, sample))
    return parts


def sample_for(run: TrainingRun, dataset: Dataset) -> Sample | None:
    """Return a sample of the dataset's training rows, tokenised for the base model.

    None without a tokenizer, or if the data is missing. Raises Invalid if the dataset is not ready or the model
    cannot render a row.
    """
    dataset.require_ready()
    if not dataset.digest:
        return None
    try:
        model, rows = run.base_model, dataset.splits["train"]
        return sampled(dataset.digest, model.folder, model.digest, rows, reading_of(run))
    except (NoTokenizer, ArtifactError):
        return None
    except NotReadable as error:
        which = f"{dataset}: " if run.mixture else ""
        raise Invalid(f"{which}{error}", field="dataset", code="not_readable") from None


def reading_of(run: TrainingRun) -> ReadingOfRows:
    """Return the way in which the run reads its rows.

    It says if prompts are rendered by the chat template, what the loss counts, and if pairs are read apart, as KTO
    does.
    """
    chosen = run.hyperparameters
    return ReadingOfRows(bool(chosen.get("as_chat")), chosen.get("loss", ANSWERS), run.method == run.Method.KTO)


@lru_cache(maxsize=64)
def sampled(digest: str, model: Path, model_digest: str, rows: int, reading: ReadingOfRows) -> Sample:
    """Return a sample of a dataset's training rows, cached by the digests, because verifying the dataset takes long.

    `model` is the base model's folder, `rows` the number of training rows. Raises NotReadable, and ArtifactError if the
    store has lost the dataset.
    """
    return sample_of(Dataset(digest=digest).folder() / "train.jsonl", model, model_digest, rows, reading)


def data(run: TrainingRun) -> dict[str, Any]:
    """Return what max_length cuts of the rows, estimated from a sample, and what each dataset of a mixture contributes.

    The verdict is UNKNOWN if the rows cannot be measured. Raises Invalid as `parts_of` does.
    """
    parts, length = parts_of(run), run.hyperparameters["max_length"]
    if parts is None:
        return {"verdict": UNKNOWN, "text": "The rows cannot be read with this base model's tokenizer yet."}
    described = [of_part(run, part, parts) for part in parts]
    counts = {name: sum(each[name] for each in described) for name in ("rows", "cut", "left_out", "without_end")}
    verdict = "will not fit" if counts["left_out"] == counts["rows"] else "cut" if counts["cut"] else "fits"
    if len(parts) > 1:
        text = " ".join(each["text"] for each in described)
    else:
        # A packed row holds several of the data's: how many, only the training knows.
        often = "" if run.hyperparameters["packing"] else f" The run reads the data {described[0]['reads']:.1f} times."
        text = f"{cuts_in_words(parts[0].sample, length)}{often}{offer(run)}"
    return {
        **counts,
        "reads": described[0]["reads"],
        "longest": max(part.sample.longest for part in parts),
        "verdict": verdict,
        "text": text,
        **({"datasets": described} if len(parts) > 1 else {}),
    }


def of_part(run: TrainingRun, part: Part, parts: list[Part]) -> dict[str, Any]:
    """Return a run's use of one of its datasets, estimated from a sample, with a sentence that says it.

    It has the share, the rows, how often they are read and the tokens read.
    """
    length = run.hyperparameters["max_length"]
    read = sequences_read(run, parts) * part.share
    reads = read / max(1, part.trainable(length))
    tokens = read * part.sample.mean_tokens(length)
    text = (
        f"{part.dataset}: {100 * part.share:.0f} % of the rows, {reads:.1f} times its {part.sample.rows:,}, about "
        f"{counted(round(tokens), 'token')}. {cuts_in_words(part.sample, length)}"
    )
    return {
        "dataset": part.dataset.pk,
        "share": round(part.share, 4),
        "rows": part.sample.rows,
        **part.sample.cut_to(length),
        "reads": round(reads, 2),
        "tokens": round(tokens),
        "text": text,
    }


def offer(run: TrainingRun) -> str:
    """Return the advice to render plain prompts by the base model's chat template; "" where it does not apply."""
    is_plain = "prompt" in run.dataset.columns and not run.dataset.is_conversation()
    if not is_plain or run.hyperparameters.get("as_chat") or not run.base_model.template_digest:
        return ""
    return (
        " The base model has a chat template: as_chat = 1 renders prompts and completions by it, as chats are served."
    )


def cuts_in_words(sample: Sample, length: int) -> str:
    """Return a sentence on what this max_length cuts of the rows."""
    cuts, about = sample.cut_to(length), "" if sample.is_whole else "about "
    if not cuts["cut"] and not cuts["left_out"]:
        return f"No row is longer than {counted(length, 'token')}; the longest has {sample.longest}."
    limit = counted(length, "token")
    return (
        f"Of {counted(sample.rows, 'row')} {about}{counted(cuts['cut'], 'is', 'are')} cut at {limit}: "
        f"{about}{counted(cuts['left_out'], 'is', 'are')} left out, as no counted answer begins before that, and "
        f"{about}{counted(cuts['without_end'], 'loses its', 'lose their')} end token."
    )


def row_length(run: TrainingRun) -> int:
    """Return the length in tokens to which the rows of a batch are padded.

    It is the longest row's, with a margin if not all rows were measured, and at most `max_length`; with packing or
    without measured rows it is `max_length`. Raises Invalid as `parts_of` does.
    """
    most: int = run.hyperparameters["max_length"]
    parts = parts_of(run)
    if parts is None or run.hyperparameters["packing"]:
        return most
    # Rows beyond a sample may be longer than those in it.
    longest = max((1 if part.sample.is_whole else UNSEEN_MARGIN) * part.sample.longest for part in parts)
    return max(1, min(most, round(longest)))


def require(run: TrainingRun) -> None:
    """Check that the run fits into memory and disk, and is within what engines serve.

    A verdict of tight or UNKNOWN passes. Raises Invalid with the nearest fix, and as `check` does.
    """
    for part, need in needs(run).items():
        if need["verdict"] == "will not fit":
            text = f"{need['text']} Change it, or queue it with anyway = true."
            raise Invalid(text, field=FIELDS.get(part, part), code="will_not_fit")


def memory(shape: Shape, plan: Plan, device: Device | None) -> dict[str, Any]:
    """Return bytes, parts, device, verdict and a sentence on the memory that the run needs.

    The verdict is UNKNOWN without a device.
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
    """Return a sentence with the first change that makes the run fit the device.

    Tried in turn are a smaller batch, recomputation, and QLoRA, which is no choice for preferences.
    """
    if batch := largest_batch(shape, plan, device_bytes):
        return f"batch_size {batch} fits."
    if not plan.recompute and (batch := largest_batch(shape, replace(plan, recompute=True), device_bytes)):
        return f"With recompute = 1, batch_size {min(batch, plan.batch_size)} fits."
    smaller = replace(plan, method="qlora", recompute=True, batch_size=1)
    if plan.method not in ("qlora", *LEARNS_FROM) and estimate(shape, smaller).verdict(device_bytes) == "fits":
        return "QLoRA with recompute = 1 and batch_size 1 fits."
    return "No batch fits: take a smaller base model, a shorter max_length, or shards on several devices."


def time(run: TrainingRun) -> dict[str, Any]:
    """Return {seconds, tokens, text}, and the pace `tokens_per_second` if it is known.

    The pace is the median of past runs of the same base model, method and devices; `seconds` is None without such a run
    or if the rows cannot be measured. Raises Invalid as `parts_of` does.
    """
    speeds = past_paces(run)
    tokens = planned_tokens(run)
    if not speeds or tokens is None:
        return {"seconds": None, "tokens": tokens, "text": "Not known before a run of this method on this base model."}
    speed = median(speeds)
    text = f"About {counted(tokens, 'token')} at {speed:,.0f} a second, as in {counted(len(speeds), 'past run')}."
    return {"seconds": round(tokens / speed, 1), "tokens": tokens, "tokens_per_second": speed, "text": text}


def past_paces(run: TrainingRun) -> list[float]:
    """Return the last tokens per second of up to PAST_RUNS successful runs of the same base model, method and devices.

    They are the newest ones; a run that logged no pace is left out.
    """
    alike = type(run).objects.filter(base_model=run.base_model, method=run.method, status=JobStatus.SUCCEEDED)
    paces = []
    for past in alike.filter(hyperparameters__devices=run.devices)[:PAST_RUNS]:
        last = past.metrics.last()
        if last and last.values.get("tokens_per_second"):
            paces.append(last.values["tokens_per_second"])
    return paces


def planned_tokens(run: TrainingRun) -> int | None:
    """Return an estimate of the number of tokens that the run will read; None if the rows cannot be measured.

    Raises Invalid as `parts_of` does.
    """
    chosen = run.hyperparameters
    parts = parts_of(run)
    if parts is None:
        return None
    if chosen["packing"] and not chosen.get("epochs"):
        return planned_rows(run, parts) * int(chosen["max_length"])
    return round(planned_rows(run, parts) * mean_tokens(parts, chosen["max_length"]))


def mean_tokens(parts: list[Part], length: int) -> float:
    """Return the mean number of tokens that are read of a row, over all datasets by their shares."""
    return sum(part.share * part.sample.mean_tokens(length) for part in parts)


def sequences_read(run: TrainingRun, parts: list[Part]) -> float:
    """Return how many of the data's rows the run reads; with packing, a row of the trainer holds several on average."""
    chosen, rows = run.hyperparameters, planned_rows(run, parts)
    if not chosen["packing"] or chosen.get("epochs"):
        return rows
    length: int = chosen["max_length"]
    return rows * length / max(1.0, mean_tokens(parts, length))


def planned_rows(run: TrainingRun, parts: list[Part]) -> int:
    """Return the number of rows that the trainer reads, by its epochs if they are set, else by its steps.

    An epoch of a mixture has read every row; datasets with few rows for their share are read more often.
    """
    chosen = run.hyperparameters
    if chosen.get("epochs"):
        each = max(max(1, part.trainable(chosen["max_length"])) / part.share for part in parts)
        return int(chosen["epochs"]) * round(each)
    rows: int = chosen["steps"] * chosen["batch_size"] * chosen["gradient_accumulation"] * run.devices
    return rows


def disk(shape: Shape, plan: Plan, device: Device | None, copies: int = 0) -> dict[str, Any]:
    """Return bytes, verdict and a sentence on the disk space that the run needs.

    It holds checkpoints with two moments, `copies` further copies of the weights, and the output.
    """
    whole = plan.method in ("full", "galore")
    trained = shape.parameters if whole else shape.adapter_parameters(plan.rank)
    needed = CHECKPOINTS * 12 * trained + 4 * (1 + copies) * trained
    if device is None:
        return {"bytes": needed, "free_bytes": None, "verdict": UNKNOWN, "text": f"{needed / GB:.3g} GB at most."}
    verdict = "fits" if needed <= 0.9 * device.disk_free_bytes else "will not fit"
    text = f"Checkpoints take up to {needed / GB:.3g} GB of {device.disk_free_bytes / GB:.3g} GB that are free."
    return {"bytes": needed, "free_bytes": device.disk_free_bytes, "verdict": verdict, "text": text}


def queue(run: TrainingRun) -> dict[str, Any]:
    """Return {ahead, running, devices, free, text}: the jobs of all projects, and the devices, that decide on the wait.

    `ahead` are queued jobs of the same or a higher priority, `devices` those that a worker reported recently; `free` is
    True if a device is free and no job is ahead.
    """
    before = Q(status=JobStatus.QUEUED, priority__gte=run.priority)
    ahead = sum(kind.objects.filter(before).exclude(pk=run.pk).count() for kind in kinds())
    running = sum(kind.objects.filter(status__in=LEASED).count() for kind in kinds())
    devices = Device.objects.alive().count()
    free = devices > running and not ahead
    text = (
        "A device is free."
        if free
        else f"{running} running, {ahead} waiting before it, {counted(devices, 'device')} known."
    )
    if run.devices > (largest := largest_host()) > 0:
        text += (
            f" It takes {counted(run.devices, 'device')} of one host, and the largest has {largest}: it waits for one."
        )
    return {"ahead": ahead, "running": running, "devices": devices, "free": free, "text": text}


def largest_host() -> int:
    """Return the number of GPUs of the host that has the most; 0 while no worker reports a GPU."""
    gpus = Device.objects.alive().filter(kind=Device.Kind.CUDA).values("host").annotate(count=Count("pk"))
    return max(gpus.values_list("count", flat=True), default=0)
