"""The base class of the embedded Postgres and Valkey: one server per data folder, run as our child, ended with us."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout
from adapterhub.embedded.lock import FileLock, Locked
from adapterhub.embedded.logs import LogFile
from adapterhub.embedded.process import Child, ProcessSpec, stop_all

LOCK_S = 10.0
READY_S = 60.0
STOP_S = 10.0
POLL_S = 0.03


class Service(ABC):
    """A server of the data folder. Start it from a thread that outlives it: it ends with that thread."""

    name: ClassVar[str]

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home)
        # The server inherits the lock: a successor waits until the old server has really ended, even after kill -9.
        self._lock = FileLock(self.layout.run / f"{self.name}.lock")
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Return the server's process id; 0 when it was not started."""
        return self._child.pid if self._child else 0

    def is_running(self) -> bool:
        """Return True while the process runs."""
        return self._child is not None and self._child.exit_code() is None

    def start(self) -> None:
        """Start the server, also one that died, and return once it answers and is set up.

        Raises StartError when it does not come up, or another process serves this folder.
        """
        self.layout.create()
        self._take_lock()
        try:
            self._serve()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, with everything committed on disk, and release its lock. May be called twice."""
        if self._child:
            stop_all([self._child], STOP_S)
        self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    @abstractmethod
    def _serve(self) -> None:
        """Start and set up the server; the folders exist and the lock is held."""

    def _came_up(self, spec: ProcessSpec) -> bool:
        """Start the process and wait until it answers; return False if it ended first.

        Raises StartError after 60 s.
        """
        self._child = child = Child(spec, LogFile(self._log))
        give_up_at = time.monotonic() + READY_S
        while not child.answers():
            if child.exit_code() is not None:
                return False
            if time.monotonic() > give_up_at:
                raise self._no_start()
            time.sleep(POLL_S)
        return True

    def _no_start(self) -> StartError:
        last_words = self._child.last_words() if self._child else "it was not started"
        return StartError(f"{self.name.title()} does not start: see {self._log}. Its last output: {last_words}")

    @property
    def _log(self) -> Path:
        return self.layout.logs / f"{self.name}.log"

    def _take_lock(self) -> None:
        if self._lock.descriptor >= 0:
            return
        try:
            self._lock.acquire(LOCK_S)
        except Locked as locked:
            raise StartError(
                f"The {self.name.title()} of {self.layout.home} is in use by process {locked.pid}: "
                "stop that one with `make stop`, or set ADAPTERHUB_HOME to another folder."
            ) from locked
