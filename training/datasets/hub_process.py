"""Child process that brings a dataset of a hub, by `datasets`, as JSON lines.

    python -m training.datasets.hub_process REQUEST TARGET CACHE EVENTS

REQUEST is JSON: repository, revision (a commit), config, split. Rows of several splits get a column `split`. The answer
in EVENTS is {rows}, their number, or {fault}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.datasets.rows import HELD_OUT_WORDS, TRAIN_WORDS

Request = dict[str, str]


def bring(request: Request, target: Path, cache: Path) -> dict[str, Any]:
    """Write the dataset's rows as JSON lines to `target`; return {rows: their number}, or {fault: the reason}."""
    # A child is offline unless it is there to ask a hub.
    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_DATASETS_OFFLINE": "0"}
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository = request["repository"]
    try:
        chosen = {"name": request["config"] or None, "split": request["split"] or None}
        read = load_dataset(repository, revision=request["revision"], cache_dir=str(cache / "datasets"), **chosen)
        with target.open("w", encoding="utf-8") as file:
            count = sum(file.write(f"{line}\n") > 0 for line in lines_of(read))
    except (DatasetsError, OSError, ValueError, TypeError) as error:
        return {"fault": f"The hub did not give {repository!r}: {str(error).strip().splitlines()[0]}"}
    return {"rows": count}


def lines_of(read: Any) -> Iterator[str]:
    """Yield the rows as JSON; those of several splits with the split's name.

    Raises ValueError for splits whose names do not tell their use, and TypeError for rows that JSON cannot hold.
    """
    if not isinstance(read, dict):
        yield from (json.dumps(row, ensure_ascii=False) for row in read)
        return
    if len(read) > 1 and (unknown := [name for name in read if name not in (*TRAIN_WORDS, *HELD_OUT_WORDS)]):
        raise ValueError(
            f"its splits are {', '.join(read)}, and {unknown[0]} is not train, validation or test: name the split."
        )
    for name, rows in read.items():
        use = {"split": name} if len(read) > 1 else {}
        yield from (json.dumps({**row, **use}, ensure_ascii=False) for row in rows)


def main(request: str, target: str, cache: str, events: str) -> None:
    """Fetch the dataset and append the result as one event to the file `events`."""
    line = json.dumps(bring(json.loads(request), Path(target), Path(cache)))
    with Path(events).open("a") as stream:
        stream.write(line + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
