"""Datasets as commands name them: by number, or by a file that is uploaded once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.waiting import until_over
from adapterhub.client import Client, calls
from adapterhub.client.final_states import require_good
from adapterhub.client.rest_types import Dataset, SameFile


def dataset_of(api: Client, project: str, source: str, timeout_s: float) -> int:
    """Return the id of the dataset that `source` names: its number, a remote source (`s3://`, `hf://`) or a file.

    A remote source is fetched by the server, at the revision after `@` if there is one; a file that is not stored yet
    is uploaded. Waits for the check. Raises Ended if `source` is none of these, Failed if the check rejects it,
    TimedOut after `timeout_s`.
    """
    if source.isdecimal():
        return checked(api, api.send(calls.dataset(int(source))), f"dataset {source}", timeout_s)
    if source.startswith(("s3://", "hf://")):
        address, _, revision = source.partition("@")
        brought = api.send(calls.bring_dataset(project, address, **({"revision": revision} if revision else {})))
        return checked(api, brought, source, timeout_s)
    file = Path(source)
    if not file.is_file():
        raise Ended(f"--dataset {source!r} is neither a number, a file nor a source (s3://, hf://).", Exit.USAGE)
    same = looked_up(api, project, file)
    if same["dataset"] is None:
        return uploaded(api, project, file, timeout_s)
    return checked(api, api.send(calls.dataset(same["dataset"])), file.name, timeout_s)


def looked_up(api: Client, project: str, file: Path) -> SameFile:
    """Look up, by the file's sha256, the dataset that was made from it before; the file itself is not sent.

    `dataset` in the answer is its id, None if there is none.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return api.send(calls.lookup_dataset(project, digest, file.name))


def uploaded(api: Client, project: str, file: Path, timeout_s: float) -> int:
    """Upload the file, wait for its check, and return the id of the dataset with its content.

    Raises Failed if the check rejects it, TimedOut after `timeout_s`.
    """
    return checked(api, api.send(calls.upload_dataset(project, file)), file.name, timeout_s)


def checked(api: Client, dataset: Dataset, name: str, timeout_s: float) -> int:
    """Wait for the check of a dataset and return its id, or that of the one with the same content.

    Raises Failed if the check rejects it, TimedOut after `timeout_s`.
    """
    if dataset["status"] == "checking":
        dataset = until_over(api, calls.dataset(dataset["id"]), f"check of {name}", timeout_s)
    if dataset["same_as"] is not None:
        return dataset["same_as"]
    require_good(dataset, name)
    return dataset["id"]
