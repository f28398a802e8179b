"""The check of a dataset's file in a child process with limits; only a short text is read in this process."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from adapterhub.core.errors import Invalid, Unavailable
from adapterhub.jobs.child import Child
from adapterhub.scratch_files import require_space
from adapterhub.workspace import scratch
from training.datasets import tables
from training.datasets.line_errors import LineError
from training.datasets.readers import records_of
from training.datasets.reading_options import Choices
from training.datasets.scan import Report, scan
from training.datasets.text_streams import NotThisFormat, is_packed

# A short text cannot unfold, and a process of its own takes longer than reading it.
SHORT_BYTES = 2**20
# Each child may take as much memory as its limit.
AT_ONCE = 2
TURN_S, CHECK_S = 30, 1800
turns = threading.BoundedSemaphore(AT_ONCE)


def checked(file: Path, form: str, folder: Path, choices: Choices) -> Report:
    """Check the file of format `form`, write its splits into the folder, and return the report.

    Broken lines are counted in the report. Raises Invalid for a file that is not of the format or too costly,
    OutOfSpace if the disk is full, and Unavailable if too many files are being checked.
    """
    if not needs_child(file, form):
        try:
            return scan(
                records_of(file, form, choices.encoding), folder, choices.mapping, escape=choices.escape
            ).report()
        except NotThisFormat as error:
            raise Invalid(str(error), field="file", code=f"not_{form}") from None
    if not turns.acquire(timeout=TURN_S):
        raise Unavailable("Too many files are being checked: send it again in a minute.")
    try:
        return by_child(file, form, folder, choices)
    finally:
        turns.release()


def needs_child(file: Path, form: str) -> bool:
    """Return True for a file that may take more memory or time than its size says."""
    return form in tables.READERS or file.stat().st_size > SHORT_BYTES or is_packed(file)


def by_child(file: Path, form: str, folder: Path, choices: Choices) -> Report:
    """Check the file in a child process of limited memory and time, which writes its splits into the folder.

    Returns the report. Raises Invalid for a file that is not of the format or too costly, and OutOfSpace if the disk is
    full.
    """
    with scratch() as own:
        events = own / "events.jsonl"
        arguments = [str(file), form, str(folder), str(events), json.dumps(asdict(choices))]
        child = Child(["training.datasets.scan_process", *arguments], events, own / "log.txt")
        try:
            status = child.wait(CHECK_S)
        finally:
            child.kill()
        answer = next(child.new_events(), None) if status == 0 else None
        if answer is None:
            require_space(own, (own / "log.txt").read_text(errors="replace"))
    if answer is None:
        message = "The file could not be read within the limits of memory and time of a check: send it in parts."
        raise Invalid(message, field="file", code="too_costly")
    if "fault" in answer and answer["code"] == "unfolds_too_far":
        raise Invalid(answer["fault"], field="file", code="unfolds_too_far")
    if "fault" in answer:
        raise Invalid(answer["fault"], field="file", code=f"not_{form}")
    errors = [LineError(**error) for error in answer.pop("errors")]
    return Report(errors=errors, **answer)
