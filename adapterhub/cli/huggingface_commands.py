"""The commands publish and import for a Hugging Face compatible hub, configured by HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adapterhub.cli import session
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.intake_commands import ConfirmBase, Fold, From, Layout, send
from adapterhub.cli.model_card import card
from adapterhub.cli.session import LONGEST_S, AsJson, Timeout, Wait, say
from adapterhub.client import Client, calls
from adapterhub.client.rest_types import Json

hub = typer.Typer(
    no_args_is_help=True, help="Exchange adapters with the Hugging Face hub, by HF_ENDPOINT and HF_TOKEN."
)
Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The hub's repository.")]
FILES = ["adapter_model.safetensors", "adapter_config.json"]
# The files that an import fetches: an adapter in any layout that is converted.
TAKEN = [*FILES, "adapter_model*.safetensors", "adapter_model.safetensors.index.json", "adapter_model.bin"]
TAKEN += ["adapters.safetensors"]


@contextmanager
def foreseen() -> Iterator[None]:
    """Convert errors of the Hugging Face hub in the block to Ended.

    Its code is NOT_ALLOWED for 401 and 403, USAGE for a name that is none, else FAILED.
    """
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HFValidationError as error:
        raise Ended(f"{error} Name a repository as owner/name.", Exit.USAGE) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        code = Exit.NOT_ALLOWED if status in (401, 403) else Exit.FAILED
        raise Ended(f"The hub refused the request: {error}", code) from error
    except HTTPError as error:
        raise Ended(f"The hub at {ENDPOINT} (HF_ENDPOINT) does not respond: {error}") from error


def written(api: Client, served_name: str, folder: Path) -> tuple[Json, str]:
    """Write the version's published files into the folder, with a model card made from its records.

    Return the version, and the source or name of its base model, by which hubs know it. Raises Ended for a text that is
    no served name, and as the calls do.
    """
    adapter, _, rest = served_name.rpartition(".v")
    number = rest.partition("-")[0]
    if not adapter or not number.isdecimal():
        raise Ended(f"{served_name!r} is not a served name such as dora.v3-0123456789ab.", Exit.USAGE)
    archive = zipfile.ZipFile(io.BytesIO(api.send(calls.download(adapter, int(number)))))
    for name in FILES:
        (folder / name).write_bytes(archive.read(name))
    version, dossier = api.send(calls.version(adapter, int(number))), api.send(calls.dossier(adapter, int(number)))
    measured = api.send(calls.evaluations(version=served_name, status="succeeded"))["results"]
    (folder / "README.md").write_text(card({**version}, dossier, [{**one} for one in measured]))
    base = dossier["1 General description"]["base model"]
    return {**version}, str(base["source"] or base["name"])


@hub.command()
def publish(
    version: Annotated[str, typer.Argument(help="Served name.")],
    repository: Repository,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of the repository, if this command creates it.")
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
    subfolder: Annotated[str, typer.Option(help="The adapter's folder in the repository.")] = "",
    layout: From = Layout.AUTO,
    fold: Fold = False,
    confirm_base: ConfirmBase = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter from the hub as the next version here; it is checked like an upload.

    The version records the repository and the commit.
    """
    from huggingface_hub import HfApi, snapshot_download

    with TemporaryDirectory() as folder:
        with foreseen():
            commit = HfApi(library_name="adapterhub").model_info(repository, revision=revision).sha
            patterns = [f"{subfolder.strip('/')}/{name}" if subfolder else name for name in TAKEN]
            snapshot_download(repository, revision=commit, local_dir=folder, allow_patterns=patterns)
        place = Path(folder, *PurePosixPath(subfolder).parts)
        if ".." in PurePosixPath(subfolder).parts or not any(place.glob("adapter*")):
            where = f"the folder {subfolder!r} of {repository}" if subfolder else repository
            raise Ended(f"There is no adapter in {where}: name its folder with --subfolder.", Exit.USAGE)
        origin = f"Imported from {repository}{f'/{subfolder}' if subfolder else ''} at {commit}."
        send(
            place,
            adapter,
            layout,
            origin=origin,
            fold=fold,
            confirm_base=confirm_base,
            wait=wait,
            timeout=timeout,
            as_json=as_json,
        )
