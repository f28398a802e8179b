"""The commands publish and import for a Hugging Face compatible hub, configured by HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adapterhub.cli import session
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.model_card import card
from adapterhub.cli.session import LONGEST_S, AsJson, Timeout, Wait, say
from adapterhub.cli.version_commands import push
from adapterhub.client import Client, calls

hub = typer.Typer(no_args_is_help=True, help="A hub of the Hugging Face kind: HF_ENDPOINT, HF_TOKEN.")
Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The hub's repository.")]
FILES = ["adapter_model.safetensors", "adapter_config.json"]


@contextmanager
def foreseen() -> Iterator[None]:
    """Translate errors of the hub into Ended."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        code = Exit.NOT_ALLOWED if status in (401, 403) else Exit.FAILED
        raise Ended(f"The hub refused the request: {error}", code) from error


def written(api: Client, served_name: str, folder: Path) -> None:
    """Write the version's published files into the folder, with a model card made from its records. Raises Ended."""
    adapter, _, rest = served_name.rpartition(".v")
    number = rest.partition("-")[0]
    if not adapter or not number.isdecimal():
        raise Ended(f"{served_name!r} is not a served name such as dora.v3-0123456789ab.", Exit.USAGE)
    archive = zipfile.ZipFile(io.BytesIO(api.send(calls.download(adapter, int(number)))))
    for name in FILES:
        (folder / name).write_bytes(archive.read(name))
    version, dossier = api.send(calls.version(adapter, int(number))), api.send(calls.dossier(adapter, int(number)))
    measured = api.send(calls.evaluations(version=served_name, status="succeeded"))["results"]
    (folder / "README.md").write_text(card({**version}, dossier, measured))


@hub.command()
def publish(
    version: Annotated[str, typer.Argument(help="Served name.")],
    repository: Repository,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of the repository, if this creates it.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Upload a version to the hub with a model card of its lineage; unchanged files are not sent again."""
    from huggingface_hub import HfApi

    with session.hub() as api, TemporaryDirectory() as folder, foreseen():
        written(api, version, Path(folder))
        there = HfApi(library_name="adapterhub")
        there.create_repo(repository, private=private, exist_ok=True)
        done = there.upload_folder(repo_id=repository, folder_path=folder, commit_message=version)
    say({"repository": repository, "commit": done.oid, "url": done.commit_url}, f"{repository} {done.oid}", as_json)


@hub.command("import")
def take(
    repository: Repository,
    adapter: Annotated[str, typer.Option("--adapter", help="The adapter that gets a new version.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    fold: Annotated[bool, typer.Option("--fold", help="Fold different effective scales into B.")] = False,
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter from the hub as the next version here; it is checked like an upload."""
    from huggingface_hub import snapshot_download

    with TemporaryDirectory() as folder:
        with foreseen():
            snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=FILES)
        missing = [name for name in FILES if not (Path(folder) / name).is_file()]
        if missing:
            raise Ended(f"{repository} lacks {', '.join(missing)}: it is not a PEFT adapter.", Exit.USAGE)
        require_json(Path(folder) / FILES[1])
        push(Path(folder), adapter, fold=fold, wait=wait, timeout=timeout, as_json=as_json)


def require_json(file: Path) -> None:
    """Check that the downloaded file is JSON. Raises Ended."""
    try:
        json.loads(file.read_text())
    except ValueError as error:
        raise Ended(f"{file.name} of the hub is not valid JSON: {error}", Exit.USAGE) from None
