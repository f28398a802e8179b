"""Uploaded files as UTF-8 streams: they are decompressed and decoded in constant memory."""

from __future__ import annotations

import codecs
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 2**20
# Text packs to about an eighth; what unpacks further than this was made to fill a disk.
MOST_UNPACKED, FREE_BYTES = 50, 64 * 2**20
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
PACKED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2")
# Files that hold others, by their first bytes; office documents are zip archives.
ARCHIVES = {
    b"PK\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an old office document",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\xfd7zX": "packed with xz",
    b"\x04\x22\x4d\x18": "packed with lz4",
    b"%PDF": "a PDF",
    b"{\\rtf": "a rich-text document",
    b"SQLi": "an SQLite database",
}
# Where the header of a tar archive names itself.
TAR_MARK, TAR_PLACE = b"ustar", 257
# Tables by their first bytes, and the format that reads them.
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow"}
# The longer marks first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# UTF-8 whose lines end with carriage returns.
MACINTOSH = "utf-8 with carriage returns"
# Where the zero bytes of the first letters stand: two letters of two bytes each, or one of four.
NULS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}
ENCODINGS = {
    "cp1252": "Windows Western",
    "cp1250": "Windows Central European",
    "cp1251": "Windows Cyrillic",
    "cp1253": "Windows Greek",
    "cp1254": "Windows Turkish",
    "cp1255": "Windows Hebrew",
    "cp1256": "Windows Arabic",
    "cp1257": "Windows Baltic",
    "latin-1": "ISO 8859-1",
    "iso8859-15": "ISO 8859-15",
    "mac-roman": "Mac Roman",
    "cp437": "DOS",
    "cp850": "DOS Western",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 without mark, little-endian",
    "utf-16-be": "UTF-16 without mark, big-endian",
    "utf-32-le": "UTF-32 without mark, little-endian",
    "utf-32-be": "UTF-32 without mark, big-endian",
    "koi8-r": "KOI8-R",
    "cp932": "Japanese (Shift-JIS)",
    "euc-jp": "Japanese (EUC)",
    "gb18030": "Chinese (GB 18030)",
    "big5": "Chinese (Big5)",
    "cp949": "Korean",
}


class NotThisFormat(ValueError):
    """Raised when a file is not of the format that its name or the user states; the message says why."""


def inner_name(name: str) -> str:
    """Return the file's name without the suffix of a compression: "rows.csv" for "rows.csv.gz"."""
    return Path(name).stem if Path(name).suffix.lower() in PACKED_SUFFIXES else name


def is_packed(path: Path) -> bool:
    """Return True if the file begins with the mark of a compression that can be read."""
    return compression_of(path) is not None


def compression_of(path: Path) -> str | None:
    """Return the name of the file's compression by its first bytes; None if it has none."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), None)


def refuse_archive(path: Path) -> None:
    """Raise NotThisFormat for a file that begins with the mark of an archive or of a compression that is not read."""
    with path.open("rb") as stream:
        start = stream.read(TAR_PLACE + len(TAR_MARK))
    archive = next((name for mark, name in ARCHIVES.items() if start.startswith(mark)), None)
    if archive is None and start.startswith(TAR_MARK, TAR_PLACE):
        archive = "a tar archive"
    if archive:
        raise NotThisFormat(
            f"The file is {archive}: send the table in it as CSV, JSON lines or Parquet, or as .gz; several texts as "
            "one, parted by empty lines."
        )


def refuse_table(path: Path) -> None:
    """Raise NotThisFormat for a Parquet or Arrow file that was to be read as text."""
    with path.open("rb") as stream:
        start = stream.read(8)
    if table := next((name for mark, name in TABLES.items() if start.startswith(mark)), None):
        raise NotThisFormat(f"The file is a table of the format {table}: choose format={table}.")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the path of the file, or of a temporary file beside it with its decompressed content.

    Raises NotThisFormat for archives and for a file that cannot be decompressed.
    """
    refuse_archive(path)
    compression = compression_of(path)
    if compression is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="unpacked-") as file:
        copy_unpacked(path, compression, file)
        file.flush()
        inner = Path(file.name)
        refuse_archive(inner)
        if again := compression_of(inner):
            raise NotThisFormat(f"The file is packed twice ({compression}, then {again}): unpack it once.")
        yield inner


def copy_unpacked(path: Path, compression: str, target: BinaryIO | tempfile._TemporaryFileWrapper[bytes]) -> None:
    """Write the decompressed content to `target`.

    Raises NotThisFormat if it cannot be decompressed, or becomes too large for the file's size.
    """
    import pyarrow

    written, most = 0, FREE_BYTES + MOST_UNPACKED * path.stat().st_size
    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            while chunk := stream.read(CHUNK):
                written += len(chunk)
                if written > most:
                    raise NotThisFormat(
                        f"The file unpacks to over {most >> 20} MB, too much for its size: send it as it is."
                    )
                target.write(chunk)
    except (pyarrow.ArrowException, OSError) as error:
        raise NotThisFormat(f"The {compression} file cannot be unpacked: {str(error).splitlines()[0]}") from None


@contextmanager
def as_utf8(path: Path, encoding: str = "") -> Iterator[BinaryIO]:
    """Yield the text file as a stream of UTF-8 bytes without a byte-order mark.

    A byte-order mark decides the encoding; without one it is `encoding`, which is chosen by the user, or UTF-8 if that
    is "". Lines that end with a carriage return only get newlines. Raises NotThisFormat for text in another encoding;
    UTF-8 is not checked unless its line ends are converted.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
        mark = next((name for mark, name in MARKS if start.startswith(mark)), encoding or "utf-8")
        if mark == "utf-8" and (likely := NULS.get(tuple(byte == 0 for byte in start))):
            raise NotThisFormat(f"The file is text in {likely} without a byte-order mark: choose encoding={likely}.")
        stream.seek(3 if mark == "utf-8-sig" else 0)
        if mark in ("utf-8", "utf-8-sig"):
            if not has_old_line_ends(stream):
                yield stream
                return
            mark = MACINTOSH
        with tempfile.TemporaryFile(dir=path.parent) as file:
            transcode(stream, mark, file)
            file.seek(0)
            yield file


def has_old_line_ends(stream: BinaryIO) -> bool:
    """Return True if lines end with a carriage return only, as on the first Macintosh; the stream's position stays."""
    place = stream.tell()
    beginning = stream.read(CHUNK)
    stream.seek(place)
    return b"\r" in beginning and b"\n" not in beginning


def transcode(stream: BinaryIO, encoding: str, target: BinaryIO) -> None:
    """Decode the stream by `encoding` and write it to `target` in UTF-8.

    Raises NotThisFormat if it is in another encoding.
    """
    decoder: Any = codecs.getincrementaldecoder("utf-8" if encoding == MACINTOSH else encoding)()
    if encoding == MACINTOSH:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    position = 0
    try:
        while chunk := stream.read(CHUNK):
            target.write(decoder.decode(chunk).encode())
            position += len(chunk)
        target.write(decoder.decode(b"", final=True).encode())
    except UnicodeError as error:
        place = position + getattr(error, "start", 0)
        message = f"The file is not in {encoding} (near byte {place}): choose another encoding."
        raise NotThisFormat(message) from None
