"""The command's configuration: address, token and project, from the environment first, then from its file."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import typer

from adapterhub import environment
from adapterhub.client.transport import require_address


class BadConfig(Exception):
    """Raised when the configuration cannot be used; the message names the place and the fix."""


@dataclass(frozen=True)
class Config:
    """Address, token and project of the command. `project` is the default for commands that name none."""

    url: str = ""
    token: str = ""
    project: str = ""

    def complete(self) -> Config:
        """Return this configuration.

        Raises BadConfig when the address or token is missing, or the address is not valid.
        """
        if not self.url or not self.token:
            missing = "address" if not self.url else "token"
            raise BadConfig(
                f"No {missing} is configured: run `adapterhub login URL`, or set ADAPTERHUB_URL and ADAPTERHUB_TOKEN."
            )
        try:
            require_address(self.url)
        except ValueError as error:
            raise BadConfig(f"ADAPTERHUB_URL, or url in {path_of()}: {error}") from None
        return self


def path_of() -> Path:
    """Return the path of the file: ADAPTERHUB_CONFIG, else config.toml in the user's configuration folder."""
    named = environment.read("ADAPTERHUB_CONFIG")
    return Path(named) if named else Path(typer.get_app_dir("adapterhub")) / "config.toml"


def load() -> Config:
    """Return the configuration of the file, in which environment variables that are set take precedence.

    Raises BadConfig if the file cannot be read.
    """
    stored = read(path_of())
    names = {"url": "ADAPTERHUB_URL", "token": "ADAPTERHUB_TOKEN", "project": "ADAPTERHUB_PROJECT"}
    overrides = {field: environment.read(name) for field, name in names.items()}
    return replace(stored, **{field: value for field, value in overrides.items() if value})


def read(path: Path) -> Config:
    """Return the configuration in the file; an empty one if there is no file.

    Raises BadConfig if it cannot be read or has other fields.
    """
    try:
        fields = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} cannot be read as TOML ({error}): fix it, or run `adapterhub login`.") from error
    unknown = set(fields) - set(asdict(Config()))
    if unknown or not all(isinstance(value, str) for value in fields.values()):
        raise BadConfig(f"{path} may only have url, token and project, each a string: fix it.")
    return Config(**fields)


def save(config: Config, path: Path) -> None:
    """Write the configuration to a new file, readable by its owner only, in place of an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(config).items())
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
