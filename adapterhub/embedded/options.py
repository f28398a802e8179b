"""The options of a start, read from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub import environment
from adapterhub.embedded.exceptions import StartError

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Options:
    """The options of one start.

    An empty URL means the embedded service, an empty `base_model` the default model below the data folder, and 0
    `threads` PyTorch's choice. `is_whole` is False if only Postgres and Valkey are started.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    router_port: int = 8080
    engine_port: int = 8100
    engines: int = 2
    engine_device: str = "cpu"
    threads: int = 0
    base_model: str = ""
    database_url: str = ""
    database_owner_url: str = ""
    database_signer_url: str = ""
    is_whole: bool = True
    redis_url: str = ""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    engine_hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    router_secret_file: str = ""
    table_max_age_s: int = 86_400
    connections: int = 4096
    connections_per_address: int = 512
    log_format: str = "text"

    @property
    def has_signer(self) -> bool:
        """Return True if a signer process runs; beside an external database only with a URL of its own."""
        return self.is_whole and bool(self.database_signer_url or not self.database_url)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Options:
        """Return the options in the environment. Raises BadSetting for an invalid value."""
        return cls(
            home=environment.home(environ),
            host=environment.read("ADAPTERHUB_HOST", environ),
            port=environment.integer("ADAPTERHUB_PORT", environ, least=1, most=65535),
            router_port=environment.integer("ADAPTERHUB_ROUTER_PORT", environ, least=1, most=65535),
            engine_port=environment.integer("ADAPTERHUB_ENGINE_PORT", environ, least=1, most=65535),
            engines=environment.integer("ADAPTERHUB_ENGINES", environ, most=64),
            engine_device=environment.choice("ADAPTERHUB_ENGINE_DEVICE", ("cpu", "cuda"), environ),
            threads=environment.integer("ADAPTERHUB_TORCH_THREADS", environ, most=1024),
            base_model=environment.read("ADAPTERHUB_BASE_MODEL", environ),
            database_url=environment.read("DATABASE_URL", environ),
            database_owner_url=environment.read("DATABASE_OWNER_URL", environ),
            database_signer_url=environment.read("DATABASE_SIGNER_URL", environ),
            redis_url=environment.read("REDIS_URL", environ),
            hosts=tuple(environment.words("ADAPTERHUB_HOSTS", environ)),
            engine_hosts=tuple(environment.engine_hosts(environ)),
            proxies=tuple(environment.networks("ADAPTERHUB_PROXIES", environ)),
            router_secret_file=environment.read("ADAPTERHUB_ROUTER_SECRET_PATH", environ),
            table_max_age_s=environment.integer("ADAPTERHUB_TABLE_MAX_AGE_S", environ, least=1),
            connections=environment.integer("ADAPTERHUB_CONNECTIONS", environ, least=1, most=2**20),
            connections_per_address=environment.integer("ADAPTERHUB_CONNECTIONS_PER_ADDRESS", environ),
            log_format=environment.choice("ADAPTERHUB_LOG_FORMAT", ("text", "json"), environ),
        )


def base_model_folder(home: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the base model that the engines serve; its name is the model's name.

    The default folder need not exist. Raises StartError when ADAPTERHUB_BASE_MODEL names a folder that does not exist.
    """
    return model_folder(home, environment.read("ADAPTERHUB_BASE_MODEL", environ))


def model_folder(home: Path, named: str) -> Path:
    """Return the named folder, or the default model's. Raises StartError when the named one is missing."""
    if not named:
        return home / "models" / DEFAULT_MODEL
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise StartError(
            f"ADAPTERHUB_BASE_MODEL={named!r} is not a folder: set it to the folder of a base model, "
            "or unset it to serve SmolLM2-135M-Instruct."
        )
    return folder
