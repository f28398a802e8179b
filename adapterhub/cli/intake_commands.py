"""The commands that bring an adapter from elsewhere: check it before its upload, convert it, and push it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import LONGEST_S, AsJson, Timeout, Wait, hub, say
from adapterhub.cli.waiting import until_ended
from adapterhub.client import Client, calls
from adapterhub.client.rest_types import Json
from adapterhub.core.counts import counted

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Source = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, help="PEFT's two files; with --from auto also other layouts.")
]
AdapterName = Annotated[str, typer.Option("--adapter", help="The adapter that gets a new version.")]
Fold = Annotated[bool, typer.Option("--fold", help="Fold different effective scales into B.")]
Keep = Annotated[
    bool, typer.Option("--keep", help="Store what PEFT computes and engines cannot serve; reduce makes a LoRA of it.")
]
ConfirmBase = Annotated[
    str,
    typer.Option(
        "--confirm-base", help="Why it fits this base model although it names another; kept in the audit trail."
    ),
]


class Layout(StrEnum):
    """The values of `--from`: `peft` takes PEFT's two files as they are, `auto` converts any layout it recognises."""

    PEFT = "peft"
    AUTO = "auto"


From = Annotated[
    Layout,
    typer.Option(
        "--from",
        help="auto: a checkpoint in a run's folder, zip, tar, .bin, shards, MLX, torchtune, tinker, AdaLoRA, float64 "
        "and 8-bit floats are converted on this machine.",
    ),
]


@dataclass(frozen=True)
class Ready:
    """A folder with PEFT's two files, notes on what was changed to make them, and the sha256 of their source."""

    folder: Path
    notes: tuple[str, ...] = ()
    source_sha256: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """Return the request's fields that record a conversion; {} if nothing was converted."""
        return {"conversions": "\n".join(self.notes), "source_sha256": self.source_sha256} if self.notes else {}


@contextmanager
def ready(source: Path, layout: Layout) -> Iterator[Ready]:
    """Yield the adapter in PEFT's layout; print notes on what was changed to stderr.

    Raises Ended if there is no adapter, it cannot be converted, or a package for the conversion is missing.
    """
    if layout is Layout.PEFT:
        missing = [name for name in (WEIGHTS, CONFIG) if not (source / name).is_file()]
        if missing:
            raise Ended(f"{source} lacks {', '.join(missing)}: `--from auto` reads other layouts.", Exit.USAGE)
        yield Ready(source)
        return
    try:
        from adapterhub.cli.conversion.sources import prepared
    except ImportError as error:
        raise Ended(f"--from auto needs {error.name}: pip install 'adapterhub[cli]'.", Exit.USAGE) from None
    with prepared(source) as made:
        for note in made.notes:
            typer.echo(note, err=True)
        yield Ready(made.folder, made.notes, made.source_sha256)


def checked(api: Client, adapter: str, folder: Path, *, fold: bool, confirm_base: str) -> Json:
    """Send the configuration and the header of the weights to the server's check, and return its answer.

    `fold` permits different scales of modules; `confirm_base` is the reason why it fits although it names another
    base model, or "". `findings` in the answer lists the faults and notices; none is raised.
    """
    weights = folder / WEIGHTS
    with TemporaryDirectory() as scratch, weights.open("rb") as stream:
        header = Path(scratch) / "header"
        length = stream.read(8)
        header.write_bytes(length + stream.read(min(int.from_bytes(length, "little"), 2 * 2**20)))
        size = weights.stat().st_size
        call = calls.check_adapter(adapter, folder / CONFIG, header, size, fold=fold, confirm_base=confirm_base)
        return api.send(call)


def check(
    folder: Source,
    adapter: AdapterName,
    source: From = Layout.AUTO,
    fold: Fold = False,
    confirm_base: ConfirmBase = "",
    as_json: AsJson = False,
) -> None:
    """Check an adapter before its upload: every fault and notice at once; only its header is sent.

    Ends with 2 if it would be refused.
    """
    with hub() as api, ready(folder, source) as made:
        answer = checked(api, adapter, made.folder, fold=fold, confirm_base=confirm_base)
    faults = [finding for finding in answer["findings"] if finding["level"] == "fault"]
    lines = [line_of(finding) for finding in answer["findings"]]
    verdict = f"{counted(len(faults), 'fault')}: it would be refused." if faults else "It would be accepted."
    if answer.get("reducible"):
        verdict += " PEFT computes it: push --keep stores it, and reduce makes a LoRA of it."
    say(answer, "\n".join([*lines, verdict]), as_json)
    if faults:
        sys.exit(Exit.USAGE)


def line_of(finding: Json) -> str:
    """Return a finding as a line: level, field, cause and what to do."""
    return f"{finding['level']} {finding['field']}: {finding['cause']} {finding['route']}".rstrip()


def push(
    folder: Source,
    adapter: AdapterName,
    source: From = Layout.PEFT,
    fold: Fold = False,
    keep: Keep = False,
    confirm_base: ConfirmBase = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter trained elsewhere; --wait follows its check."""
    send(
        folder,
        adapter,
        source,
        fold=fold,
        keep=keep,
        confirm_base=confirm_base,
        wait=wait,
        timeout=timeout,
        as_json=as_json,
    )


def send(
    folder: Path,
    adapter: str,
    layout: Layout,
    *,
    fold: bool,
    confirm_base: str,
    wait: bool,
    timeout: float,
    as_json: bool,
    keep: bool = False,
    origin: str = "",
) -> None:
    """Publish the adapter; `origin`, if given, is added to its lineage. The rest is as in `push`.

    Raises Ended if there is no adapter or it cannot be converted.
    """
    with hub() as api, ready(folder, layout) as made:
        noted = replace(made, notes=(origin, *made.notes)) if origin else made
        confirmed = {"confirm_base": confirm_base} if confirm_base else {}
        confirmed |= {"keep": "true"} if keep else {}
        version = api.send(calls.push(adapter, made.folder, fold=fold, **confirmed, **noted.fields))
        if wait:
            call = calls.version(adapter, version["number"])
            version = until_ended(api, call, version["served_name"], timeout)
    say(version, f"{version['served_name']} {version['status']}", as_json)


def reduce(
    version: Annotated[str, typer.Argument(help="Served name.")],
    max_rank: Annotated[int, typer.Option("--max-rank", min=1, max=512, help="The highest rank of a module.")] = 64,
    dataset: Annotated[int, typer.Option(help="Number of the dataset to measure the loss on.")] = 0,
    keep_merged: Annotated[bool, typer.Option("--keep-merged", help="Store the merged base model, too.")] = False,
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Cut a version to a plain LoRA of a rank that engines serve, as a new version; the loss is measured."""
    adapter, _, rest = version.rpartition(".v")
    number = rest.partition("-")[0]
    if not adapter or not number.isdecimal():
        raise Ended(f"{version!r} is not a served name such as eu.dora.v3-0123456789ab.", Exit.USAGE)
    body: Json = {"budget": {"max_rank": max_rank}, "keeps_merged": keep_merged}
    body |= {"dataset": dataset} if dataset else {}
    with hub() as api:
        job: Json = api.send(calls.post(f"adapters/{calls.part(adapter)}/versions/{number}/compress/", **body))
        if wait:
            job = until_ended(api, calls.get(f"compressions/{job['id']}/"), f"reduction of {version}", timeout)
    say(job, f"{job['id']} {job['status']} {job['version'] or ''}".strip(), as_json)
