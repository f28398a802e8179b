"""A bounded file of reports, one JSON object a line, used while Valkey is away."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson

MAX_BYTES = 64 * 2**20
log = logging.getLogger(__name__)


class Spool:
    """Bounded file of reports with blocking access; one user at a time."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self.dropped = 0

    def append(self, reports: list[bytes]) -> None:
        """Append the reports.

        Those that do not fit are dropped and counted; so are all if the file cannot be written, which is logged.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.open("ab") as stream:
                room = self._max_bytes - stream.tell()
                for report in reports:
                    room -= len(report) + 1
                    if room < 0:
                        self.dropped += 1
                    else:
                        stream.write(report + b"\n")
        except OSError as error:
            self.dropped += len(reports)
            log.error("Reports are lost, as the spool cannot be written: %s.", error)

    def read(self) -> list[bytes]:
        """Return every whole report in the file, oldest first.

        The list is empty if the file is missing or cannot be read; the latter is logged.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            log.error("The spool cannot be read: %s.", error)
            return []
        return [line for line in lines if is_whole(line)]

    def clear(self) -> None:
        """Delete the file, if it exists."""
        self._path.unlink(missing_ok=True)


def is_whole(line: bytes) -> bool:
    """Return True for a line that is a JSON object, which one cut off by a crash is not."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
