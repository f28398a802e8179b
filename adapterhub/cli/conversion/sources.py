"""The place of an adapter: a folder, a run's folder with checkpoints, a zip or a tar; its files read into memory."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from adapterhub.cli.conversion.layouts import Adapter, converted
from adapterhub.cli.conversion.raw_tensors import Tensors, read_safetensors, write_safetensors
from adapterhub.cli.exit_codes import Ended, Exit

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
INDEX = "adapter_model.safetensors.index.json"
MLX_WEIGHTS = "adapters.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
SHARD = re.compile(r"adapter_model-\d{5}-of-(?P<count>\d{5})\.safetensors")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MOST_BYTES = 16 * 2**30
MOST_FILES = 1000


@dataclass(frozen=True)
class Prepared:
    """A folder with PEFT's two files, notes on what was changed to make them, and the sha256 of the weights before."""

    folder: Path
    notes: tuple[str, ...]
    source_sha256: str


@contextmanager
def prepared(source: Path) -> Iterator[Prepared]:
    """Yield the adapter of a folder or archive in PEFT's layout; if it had to be changed, in a temporary folder.

    Raises Ended if there is no adapter, several, or one that cannot be read or converted.
    """
    with TemporaryDirectory() as scratch:
        folder, notes = source, []
        if source.is_file():
            folder = Path(scratch) / "unpacked"
            unpack(source, folder)
            notes.append(f"{source.name} was unpacked.")
        place = adapter_folder(folder)
        if place != folder:
            notes.append(f"Taken from {place.relative_to(folder)}/.")
        digest = sha256_of(weight_files(place))
        if is_plain(place) and (ready := read(place)) and converted(ready).notes == ready.notes:
            yield Prepared(place, tuple(notes), digest)
            return
        adapter = converted(read(place))
        target = Path(scratch) / "prepared"
        target.mkdir()
        write_safetensors(adapter.tensors, target / WEIGHTS)
        (target / CONFIG).write_text(json.dumps(adapter.config, indent=2, sort_keys=True) + "\n")
        yield Prepared(target, (*notes, *adapter.notes), digest)


def adapter_folder(folder: Path) -> Path:
    """Return the folder with the adapter's files: this one, its newest checkpoint, or the only one inside with them.

    If no folder inside has them and there is only one, that one is searched in the same way. Raises Ended if there is
    no adapter, or several.
    """
    if has_adapter(folder):
        return folder
    inside = [place for place in sorted(folder.iterdir()) if place.is_dir() and not is_aside(place)]
    checkpoints = [place for place in inside if CHECKPOINT.fullmatch(place.name) and has_adapter(place)]
    if checkpoints:
        return max(checkpoints, key=lambda place: int(place.name.rpartition("-")[2]))
    if adapters := [place for place in inside if has_adapter(place)]:
        if len(adapters) > 1:
            names = ", ".join(place.name for place in adapters)
            raise Ended(f"{folder} holds several adapters ({names}): name one of these folders.", Exit.USAGE)
        return adapters[0]
    if len(inside) == 1:
        return adapter_folder(inside[0])
    raise Ended(f"{folder} has no adapter: neither {CONFIG} with weights, nor a checkpoint with both.", Exit.USAGE)


def is_aside(folder: Path) -> bool:
    """Return True for a link, which may lead anywhere, and for a hidden folder, such as a cache or what macOS adds."""
    return folder.is_symlink() or folder.name.startswith(".") or folder.name == "__MACOSX"


def has_adapter(folder: Path) -> bool:
    """Return True if the folder holds a configuration and weights. Raises Ended for a missing shard."""
    return (folder / CONFIG).is_file() and bool(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the adapter's weights; [] if there are none.

    They are the first single file of a known name, else the shards of the index, else the numbered shards. Raises Ended
    for a missing shard.
    """
    for name in (WEIGHTS, MLX_WEIGHTS, *PICKLES):
        if (folder / name).is_file():
            return [folder / name]
    return shards_of(folder) if (folder / INDEX).is_file() else numbered_shards(folder)


def numbered_shards(folder: Path) -> list[Path]:
    """Return the shards in a folder without an index, by their names. Raises Ended for a missing one."""
    shards = {path: match for path in sorted(folder.glob("*.safetensors")) if (match := SHARD.fullmatch(path.name))}
    if not shards:
        return []
    counts = {match["count"] for match in shards.values()}
    if len(counts) > 1 or len(shards) != int(next(iter(counts))):
        raise Ended(
            f"{folder} holds {len(shards)} of {', '.join(sorted(counts))} shards: fetch all of them.", Exit.USAGE
        )
    return list(shards)


def shards_of(folder: Path) -> list[Path]:
    """Return the files that the index in the folder names, sorted by name; the index must exist.

    Raises Ended for an index that cannot be read or names no file, for a missing file, and for a name that is a path.
    """
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        missing = [name for name in names if PurePosixPath(name).name != name or not (folder / name).is_file()]
    except (ValueError, LookupError, AttributeError, TypeError):
        raise Ended(f"{folder / INDEX} cannot be read.", Exit.USAGE) from None
    if missing or not names:
        raise Ended(f"{folder / INDEX} names {', '.join(missing) or 'no file'}, which is not there.", Exit.USAGE)
    return [folder / name for name in names]


def is_plain(folder: Path) -> bool:
    """Return True if the weights lie in one file under PEFT's name."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Adapter:
    """Return the adapter in the folder. Raises Ended if a file cannot be read."""
    try:
        config: Any = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise Ended(f"{folder / CONFIG} is not valid JSON: {error}", Exit.USAGE) from None
    if not isinstance(config, dict):
        raise Ended(f"{folder / CONFIG} is not a JSON object.", Exit.USAGE)
    files = weight_files(folder)
    if files[0].name in PICKLES:
        note = f"{files[0].name} was read with weights_only."
        return Adapter(from_pickle(files[0]), config, (note,), is_pickle=True)
    tensors: Tensors = {}
    for file in files:
        shard = read_safetensors(file)
        if doubled := sorted(tensors.keys() & shard.keys()):
            raise Ended(f"{file} has {doubled[0]}, which another shard has, too: fetch the shards again.", Exit.USAGE)
        tensors |= shard
    if (folder / INDEX).is_file() and len(files) > 1:
        require_whole(folder / INDEX, tensors)
    return Adapter(tensors, config, (f"{len(files)} shards were joined.",) if len(files) > 1 else ())


def require_whole(index: Path, tensors: Tensors) -> None:
    """Raise Ended if the shards do not hold exactly the tensors that their index names."""
    named = json.loads(index.read_bytes())["weight_map"].keys()
    if differing := sorted(named ^ tensors.keys()):
        where = "is in no shard" if differing[0] in named else "is not in the index"
        raise Ended(f"{index} and its shards differ: {differing[0]} {where}. Fetch all of them again.", Exit.USAGE)


def from_pickle(path: Path) -> Tensors:
    """Return the tensors in a PyTorch file, read by a child process that accepts nothing but tensors.

    Raises Ended if the file is damaged or holds anything else.
    """
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / WEIGHTS
        command = [sys.executable, "-m", "adapterhub.cli.conversion.pickled", str(path), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - argv list, no shell
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Ended(f"{path} cannot be read: {reason[:300]}", Exit.USAGE)
        return read_safetensors(target)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the plain files of a zip or a tar into the new folder `target`.

    Raises Ended for any other file, too many files or bytes, and a name that leads out of the folder.
    """
    target.mkdir()
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            rows = [(info.filename, info.file_size, info) for info in opened.infolist() if not info.is_dir()]
            require_small(archive, [size for _, size, _ in rows])
            for name, size, info in rows:
                with opened.open(info) as stream:
                    put(stream, target, name, size)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            members = [member for member in opened_tar.getmembers() if member.isfile()]
            require_small(archive, [member.size for member in members])
            for member in members:
                stream_of = opened_tar.extractfile(member)
                if stream_of:
                    put(stream_of, target, member.name, member.size)
    else:
        raise Ended(f"{archive} is not a folder, a zip file or a tar file.", Exit.USAGE)


def require_small(archive: Path, sizes: list[int]) -> None:
    """Raise Ended if an archive announces too many files or bytes."""
    if len(sizes) > MOST_FILES or sum(sizes) > MOST_BYTES:
        raise Ended(f"{archive} has over {MOST_FILES} files or 16 GiB: unpack it and name the folder.", Exit.USAGE)


def put(stream: IO[bytes], target: Path, name: str, size: int) -> None:
    """Write an archive's file below the target.

    Raises Ended for a name that leads out of it, or a size other than announced.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise Ended(
            f"The archive names {name!r}, which lies outside of its folder: unpack it and name the folder.", Exit.USAGE
        )
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as sink:
        shutil.copyfileobj(stream, sink, 2**20)
        if sink.tell() != size:
            raise Ended(f"{name} in the archive is not of the announced size: pack it again.", Exit.USAGE)


def sha256_of(files: list[Path]) -> str:
    """Return the sha256, in hexadecimal, of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
