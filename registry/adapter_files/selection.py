"""The choice of one adapter's files among those that were sent: a folder, a training run's folder, an archive. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from registry.adapter_files.findings import Finding, fault, listed, printable
from registry.adapter_files.safetensors_header import Unreadable
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import CONVERT, WEIGHTS

FILES = "files"
# Browsers and file managers write "adapter_config (1).json" beside a file of the same name.
CONFIG_NAME = re.compile(r"adapter_config(?: ?\(\d+\)| copy)?\.json")
SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What a training saves beside an adapter, which is no adapter.
ASIDE = re.compile(r"(?:optimizer|scheduler|training_args|rng_state|scaler|random_states)")


@dataclass(frozen=True)
class Selection:
    """The files of one adapter, as paths among those that were sent; `notes` say what was chosen and what left out."""

    config: str
    weights: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Return the paths of the configuration and the weights."""
        return (self.config, *self.weights)


def select(paths: Iterable[str]) -> Selection:
    """Choose the adapter whose folder contains all the others, else the checkpoint with the highest step.

    Hidden files, among them those that macOS adds to an archive, are left out and not mentioned in the notes. Raises
    Unreadable if there is no complete adapter, or no way to choose among several.
    """
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)
    for path in paths:
        place = PurePosixPath(path.replace("\\", "/"))
        if not is_hidden(place):
            folders[place.parent].append(path)
    configured = {folder: names for folder, names in folders.items() if configs(names)}
    complete = {folder: names for folder, names in configured.items() if any(is_weights(name) for name in names)}
    if not complete:
        raise Unreadable(no_adapter(configured, [name for names in folders.values() for name in names]))
    folder = chosen_folder(list(complete))
    return selection_in(folder, complete[folder], [other for other in complete if other != folder])


def is_hidden(path: PurePosixPath) -> bool:
    """Return True if a part of the path begins with a dot, or is `__MACOSX`, which macOS adds to archives."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.parts)


def base_name(path: str) -> str:
    """Return the last part of a path."""
    return PurePosixPath(path.replace("\\", "/")).name


def configs(paths: Iterable[str]) -> list[str]:
    """Return the paths of adapter_config.json and its copies (`adapter_config (1).json`), the shortest path first."""
    return sorted(
        (path for path in paths if CONFIG_NAME.fullmatch(base_name(path))), key=lambda path: (len(path), path)
    )


def is_weights(path: str) -> bool:
    """Return True if the path ends in .safetensors."""
    return base_name(path).endswith(".safetensors")


def chosen_folder(folders: list[PurePosixPath]) -> PurePosixPath:
    """Return the folder that contains all the others; of checkpoints beside one another, the one with the highest step.

    Raises Unreadable for other folders, of which none can be preferred.
    """
    top = min(folders, key=lambda folder: len(folder.parts))
    if all(folder == top or top in folder.parents for folder in folders):
        return top
    steps = {folder: CHECKPOINT.fullmatch(folder.name) for folder in folders}
    if all(steps.values()) and len({folder.parent for folder in folders}) == 1:
        return max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))
    names = listed(sorted(map(str, folders)), 6)
    raise Unreadable(fault("several_adapters", FILES, f"There are several adapters: {names}.", "Send one of them."))


def selection_in(folder: PurePosixPath, paths: list[str], others: list[PurePosixPath]) -> Selection:
    """Choose configuration and weights among the paths in `folder`; `others` are folders of adapters that are left out.

    Raises Unreadable if several files could be the weights.
    """
    config = configs(paths)[0]
    weights = weights_in(paths)
    notes = [] if folder == PurePosixPath() else [f"Taken from {printable(str(folder))}/."]
    if others:
        notes.append(f"Left out, other adapters: {listed(sorted(map(str, others)), 6)}.")
    if len(weights) > 1:
        notes.append(f"{len(weights)} shards were joined.")
    elif base_name(weights[0]) != WEIGHTS:
        notes.append(f"{printable(base_name(weights[0]))} was read as {WEIGHTS}.")
    if base_name(config) != CONFIG:
        notes.append(f"{printable(base_name(config))} was read as {CONFIG}.")
    unread = sorted(base_name(path) for path in paths if path not in (config, *weights))
    if unread:
        notes.append(f"Left out: {listed(unread, 8)}.")
    return Selection(config, weights, tuple(notes))


def weights_in(paths: list[str]) -> tuple[str, ...]:
    """Return the path of the weights, or those of all shards in order; a file named WEIGHTS is preferred to all others.

    Raises Unreadable if several files could be the weights, or a shard is missing.
    """
    files = sorted(path for path in paths if is_weights(path))
    if named := [path for path in files if base_name(path) == WEIGHTS]:
        return (named[0],)
    shards = {path: match for path in files if (match := SHARD.fullmatch(base_name(path)))}
    if shards and len({(match["stem"], match["count"]) for match in shards.values()}) == 1:
        return complete_shards(shards)
    if len(files) == 1:
        return (files[0],)
    cause = f"Several files could be the weights: {listed([base_name(path) for path in files], 6)}."
    raise Unreadable(fault("several_weights", FILES, cause, f"Send the adapter's own, named {WEIGHTS}, alone."))


def complete_shards(shards: dict[str, re.Match[str]]) -> tuple[str, ...]:
    """Return the paths of the shards in order. Raises Unreadable if one is missing."""
    first = next(iter(shards.values()))
    there = {int(match["part"]) for match in shards.values()}
    count = int(first["count"])
    if missing := sorted(set(range(1, min(count, 1000) + 1)) - there):
        names = [f"{first['stem']}-{part:05d}-of-{count:05d}.safetensors" for part in missing]
        cause = f"Of {count} shards, {len(missing)} are missing: {listed(names)}."
        raise Unreadable(fault("missing_shards", FILES, cause, "Send all of them."))
    return tuple(sorted(shards))


def no_adapter(configured: dict[PurePosixPath, list[str]], paths: list[str]) -> Finding:
    """Return the fault of files without a complete adapter; it says what is there instead and what to send.

    `configured` maps folders with a configuration to their paths, `paths` are all that were sent.
    """
    names = [base_name(path) for path in paths]
    if not names:
        return fault("no_files", FILES, "No file was sent.", f"Send {CONFIG} and {WEIGHTS}, their folder, or a zip.")
    if not configured:
        if any(map(is_weights, names)):
            cause = f"There are weights ({listed([name for name in names if is_weights(name)])}) but no {CONFIG}."
            return fault(
                "no_config", FILES, cause, "Send it with them: PEFT's `save_pretrained` writes it beside them."
            )
        return fault(
            "no_adapter", FILES, f"There is no {CONFIG} among {listed(names, 6)}.", "Send the adapter's folder."
        )
    own = [base_name(path) for folder in configured.values() for path in folder]
    for meaning, code, route, endings in (
        ("a pickle, which no server opens", "pickle", CONVERT, PICKLES),
        ("a GGUF file", "gguf", "Send the adapter from which it was converted: PEFT's two files.", (".gguf",)),
        ("an archive inside what was sent", "archive", "Unpack it and send its files.", (".zip", ".tar", ".gz", ".7z")),
    ):
        if files := [name for name in own if name.endswith(endings) and not ASIDE.match(name)]:
            return fault(code, FILES, f"The weights are {meaning}: {listed(files)}.", route)
    return fault(
        "no_weights", FILES, f"There is {CONFIG} but no file of weights beside it.", f"Send {WEIGHTS} with it."
    )
