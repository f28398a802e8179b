"""Child process that checks a dataset's file, under limits of memory, time and output that it sets for itself.

    python -m training.datasets.scan_process FILE FORMAT FOLDER EVENTS CHOICES

It writes the splits to FOLDER and appends its report, or the file's fault, to EVENTS as a line of JSON. Any exit but 0
means that a limit has ended it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.datasets.reading_options import Choices

MEMORY_BYTES = 2 * 2**30
CPU_S = 30
MB = 2**20
# A text repeats itself in other places than a line; what unfolds further than this was made to.
MOST_UNFOLDED, FREE_BYTES = 50, 64 * MB


def limit(file: Path) -> None:
    """Limit this process's memory, CPU time and threads, so that a malicious file can end only this process.

    The time is CPU_S seconds, and one second more for each MB of the file.
    """
    seconds = CPU_S + file.stat().st_size // MB
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Each thread of numpy's or Arrow's pools would take address space, whose limit is meant for the file.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}


def report_on(file: Path, form: str, folder: Path, choices: Choices) -> dict[str, Any]:
    """Scan the file; return the report as a dict for JSON, or {fault, code} if the file as a whole cannot be read."""
    from training.datasets.readers import records_of
    from training.datasets.scan import UnfoldsTooFar, scan
    from training.datasets.text_streams import NotThisFormat

    most = FREE_BYTES + MOST_UNFOLDED * file.stat().st_size
    try:
        records = records_of(file, form, choices.encoding)
        return asdict(scan(records, folder, choices.mapping, escape=choices.escape, most_bytes=most).report())
    except NotThisFormat as error:
        return {"fault": str(error), "code": f"not_{form}"}
    except UnfoldsTooFar as error:
        return {"fault": str(error), "code": "unfolds_too_far"}


def main(file: str, form: str, folder: str, events: str, choices: str) -> None:
    """Scan the file within the limits and append the report as one event to the file `events`."""
    limit(Path(file))
    line = json.dumps(report_on(Path(file), form, Path(folder), Choices(**json.loads(choices))))
    with Path(events).open("a") as stream:
        stream.write(line + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
