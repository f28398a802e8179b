"""The commands `oci push` and `oci pull`: versions in OCI registries, in the ModelPack format."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adapterhub.cli import session
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.huggingface_commands import written
from adapterhub.cli.intake_commands import WEIGHTS, AdapterName, ConfirmBase, Fold, From, Keep, Layout, send
from adapterhub.cli.oci.modelpack import (
    ARTIFACT,
    CONFIG,
    KINDS,
    Blob,
    NoModelPack,
    configuration,
    manifest,
    precision_of,
    read_configuration,
    read_manifest,
    title_of,
)
from adapterhub.cli.oci.registry import Artifacts, foreseen
from adapterhub.cli.session import LONGEST_S, AsJson, Timeout, Wait, say
from adapterhub.client.rest_types import Json

oci = typer.Typer(
    no_args_is_help=True,
    help="Exchange adapters with an OCI registry in the ModelPack format, with the credentials of `docker login`.",
)
Reference = Annotated[str, typer.Argument(metavar="HOST/REPOSITORY[:TAG|@DIGEST]", help="The place in the registry.")]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Speak HTTP, for a registry on this machine.")]


def opened(reference: str, plain_http: bool) -> Artifacts:
    """Return the repository that the reference names. Raises Ended if it names none, and without oras."""
    if "/" not in reference:
        raise Ended(f"{reference!r} is no reference such as registry.example/eu/dora:v3.", Exit.USAGE)
    try:
        with foreseen(reference):
            return Artifacts(reference, plain_http=plain_http)
    except ImportError as error:
        raise Ended(f"This needs {error.name}: pip install 'adapterhub[cli]'.", Exit.USAGE) from None


@oci.command("push")
def put(
    version: Annotated[str, typer.Argument(help="Served name.")],
    reference: Reference,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Push a version as an OCI artifact in the ModelPack format; content that is there is not sent again."""
    there = opened(reference, plain_http)
    with session.hub() as api, TemporaryDirectory() as folder, foreseen(reference):
        facts, base_model = written(api, version, Path(folder))
        files = [there.push(Path(folder) / name, f"{kind}.raw", name) for name, kind in KINDS.items()]
        precision = precision_of(header_of(Path(folder) / WEIGHTS))
        config = there.push_json(configuration(facts, base_model, files, precision), CONFIG)
        digest = there.push_manifest(manifest(facts, base_model, config, files))
    done = {"reference": reference, "digest": digest, "artifact_type": ARTIFACT}
    say(done, f"{there.place}@{digest}", as_json)


@oci.command("pull")
def take(
    reference: Reference,
    adapter: AdapterName,
    plain_http: PlainHttp = False,
    layout: From = Layout.AUTO,
    fold: Fold = False,
    keep: Keep = False,
    confirm_base: ConfirmBase = "",
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter from a ModelPack as the next version here; it is checked like an upload.

    Every blob is compared with its digest. The version records the repository and the manifest's digest.
    """
    there = opened(reference, plain_http)
    with TemporaryDirectory() as folder:
        place = Path(folder) / "files"
        place.mkdir()
        try:
            with foreseen(reference):
                text, digest = there.manifest()
            config, blobs, count = read_manifest(text)
            with foreseen(reference):
                about = read_configuration(there.text(config["digest"], config["size"]), count)
                for blob in blobs:
                    put_in(there, blob, place, Path(folder))
        except NoModelPack as error:
            raise Ended(f"{reference}: {error}", Exit.USAGE) from None
        send(
            place,
            adapter,
            layout,
            origin=f"Pulled {title_of(about)} from {there.place}@{digest}.",
            fold=fold,
            keep=keep,
            confirm_base=confirm_base,
            wait=wait,
            timeout=timeout,
            as_json=as_json,
        )


def header_of(path: Path) -> Json:
    """Return the JSON header of a safetensors file, which must be a valid one."""
    with path.open("rb") as stream:
        header: Json = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return header


def put_in(there: Artifacts, blob: Blob, place: Path, scratch: Path) -> None:
    """Fetch a layer to its path below `place`; an archive is unpacked there, plain files alone, within limits."""
    if blob.is_archive:
        from adapterhub.cli.conversion.sources import unpack

        archive = scratch / f"{blob.digest.partition(':')[2]}.tar"
        there.fetch(blob, archive)
        inside = scratch / archive.stem
        unpack(archive, inside)
        for path in [path for path in inside.rglob("*") if path.is_file()]:
            target = place / path.relative_to(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        return
    target = place.joinpath(*PurePosixPath(blob.path).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    there.fetch(blob, target)
