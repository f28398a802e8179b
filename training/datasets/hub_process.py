"""Child process that downloads a dataset of a hub with the package `datasets`, as JSON lines.

    python -m training.datasets.hub_process REQUEST TARGET CACHE EVENTS

REQUEST is JSON: repository, revision (a commit), config, split. Rows of several splits get a column `split`. A line of
JSON is appended to EVENTS: {rows}, their number, or {fault}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from training.datasets.rows import HELD_OUT_WORDS, TRAIN_WORDS

Request = dict[str, str]
# Values of a card that are looked at for places of files.
MOST_VALUES = 10_000


def bring(request: Request, target: Path, cache: Path) -> dict[str, Any]:
    """Write the dataset's rows as JSON lines to `target`; return {rows: their number}, or {fault: the reason}."""
    # A child is offline unless it is there to ask a hub.
    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_DATASETS_OFFLINE": "0"}
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository = request["repository"]
    try:
        require_own_files(repository, request["revision"])
        chosen = {"name": request["config"] or None, "split": request["split"] or None}
        read = load_dataset(repository, revision=request["revision"], cache_dir=str(cache / "datasets"), **chosen)
        for rows in read.values() if isinstance(read, dict) else [read]:
            require_plain(rows.features)
        with target.open("w", encoding="utf-8") as file:
            count = sum(file.write(f"{line}\n") > 0 for line in lines_of(read))
    except (DatasetsError, OSError, ValueError, TypeError) as error:
        return {"fault": f"The hub did not give {repository!r}: {str(error).strip().splitlines()[0]}"}
    return {"rows": count}


def require_own_files(repository: str, revision: str) -> None:
    """Raise ValueError if the dataset's card names files outside of its repository.

    `datasets` would ask for them, in this network or on this machine, before it finds that they are not the dataset's.
    """
    import yaml
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    readers: dict[str, Callable[[str], Any]] = {
        "README.md": lambda text: cast(Any, DatasetCard(text)).data.to_dict(),
        ".huggingface.yaml": yaml.safe_load,
    }
    for name, parse in readers.items():
        try:
            path = hf_hub_download(repository, name, repo_type="dataset", revision=revision)
        except RemoteEntryNotFoundError:
            continue
        try:
            card = parse(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"its {name} is no YAML: {str(error).splitlines()[0]}.") from None
        for place in places_in(card):
            parts = place.replace("\\", "/").split("/")
            if "::" in place or "://" in place or ".." in parts or parts[0] in ("", "~") or place[1:2] == ":":
                raise ValueError(f"its {name} names {place[:100]!r}, which is no file of the dataset.")


def places_in(card: Any) -> Iterator[str]:
    """Yield the texts in a dataset's card that say where the files of its configurations are.

    Raises ValueError for a card with too many values: it can refer to one value in many places, and so hold more values
    than it has characters.
    """
    configs = card.get("configs") if isinstance(card, dict) else None
    waiting = [
        value
        for config in (configs if isinstance(configs, list) else [configs])
        if isinstance(config, dict)
        for name, value in config.items()
        if name in ("data_files", "data_dir")
    ]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, str):
            if value:
                yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    raise ValueError("its card names too many files.")


def require_plain(features: Any) -> None:
    """Raise TypeError for a column of images or other files.

    Each of its rows names a place that would be opened here.
    """
    from datasets import ClassLabel, Translation, TranslationVariableLanguages, Value

    waiting = [(str(name), kind) for name, kind in dict(features or {}).items()]
    while waiting:
        name, kind = waiting.pop()
        if isinstance(kind, dict):
            waiting += [(name, inner) for inner in kind.values()]
        elif isinstance(kind, list):
            waiting += [(name, inner) for inner in kind]
        elif hasattr(kind, "feature"):
            waiting.append((name, kind.feature))
        elif not isinstance(kind, Value | ClassLabel | Translation | TranslationVariableLanguages):
            raise TypeError(f"its column {name[:100]!r} holds {type(kind).__name__}, which no training here reads.")


def lines_of(read: Any) -> Iterator[str]:
    """Yield the rows as JSON; if there are several splits, each row with the name of its split.

    Raises ValueError for splits whose names do not say what they are for, and TypeError for rows that JSON cannot hold.
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
