"""Sources of MLflow's model versions: files sent to this server's artifact API, or the files of a version here."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.http import Http404
from rest_framework.request import Request

from adapterhub.api.permissions import actor_of, require_scope, seen_in
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from adapterhub.core.references import named
from adapterhub.core.tenancy import Scope
from registry.exports.zip_export import readable
from registry.models import Adapter, AdapterVersion, StagedFile
from registry.models.staged_file import OF_BROWSERS
from registry.uploads.receiving import Received, receive_local
from registry.uploads.staging import take

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
VERSION = re.compile(r"versions/([^/]+)/(\d{1,9})")
MODEL = re.compile(r"models:/([^/@]+)/(\d{1,9})")
ROUTE = (
    "Send the files with MLflow's artifact client to mlflow-artifacts:/uploads/<project>/<name> at this address, and "
    "register that."
)


def place_of(source: str, request: Request) -> str:
    """Return the path of a source in this server's artifact API; models:/NAME/NUMBER is that of the version.

    Raises Invalid for a source elsewhere.
    """
    parts = urlsplit(source)
    is_here = not parts.netloc or parts.netloc == request.get_host()
    if MODEL.fullmatch(source):
        name, number = MODEL.fullmatch(source).groups()  # type: ignore[union-attr]
        return f"versions/{name}/{number}"
    if parts.scheme == "mlflow-artifacts" and is_here and not parts.query:
        return unquote(parts.path).removeprefix(ARTIFACTS).strip("/")
    if parts.scheme in ("http", "https") and parts.netloc and is_here and parts.path.startswith(ARTIFACTS):
        return unquote(parts.path).removeprefix(ARTIFACTS).strip("/")
    kind = "another server" if parts.scheme == "mlflow-artifacts" else f"{parts.scheme or 'a path'}"
    raise Invalid(
        f"{source[:200]!r} is {kind}: nothing is fetched from there. {ROUTE}", field="source", code="bad_source"
    )


def received(source: str, adapter: Adapter, request: Request, folder: Path) -> Received:
    """Put the source's adapter into the new folder as PEFT's two files, and return it.

    Raises Invalid for a source elsewhere, for one that holds nothing for the adapter, and for files that are not an
    adapter.
    """
    place = place_of(source, request)
    if version := VERSION.fullmatch(place):
        folder.mkdir()
        return from_version(version[1], int(version[2]), request, folder)
    staged = list(staged_below(place, adapter))
    if not staged:
        raise Invalid(f"Nothing was sent to {source[:200]!r} for {adapter}. {ROUTE}", field="source", code="bad_source")
    parts = folder.with_name("sent")
    parts.mkdir()
    prefix = len(place.partition("/")[2].partition("/")[2]) + 1
    files = {file.path[prefix:]: take(file, parts / str(number)) for number, file in enumerate(staged)}
    return receive_local(files, folder)


def staged_below(place: str, adapter: Adapter) -> list[StagedFile]:
    """Return the staged files at or below a place `uploads/<project>/<name>`.

    Returns [] for a project other than the adapter's, for any other place, and for files that browsers uploaded.
    """
    kind, _, rest = place.partition("/")
    project, _, name = rest.partition("/")
    if kind != "uploads" or project != adapter.project.slug or not name or name.startswith(OF_BROWSERS):
        return []
    return list(StagedFile.objects.filter(project=adapter.project).below(name))


def from_version(name: str, number: int, request: Request, folder: Path) -> Received:
    """Copy the files of a version that the caller may read into the folder, which must exist, and return them.

    The read of the weights is recorded. Raises Invalid if there is no such version that the caller sees, NotAllowed
    without scope read, and Unavailable if its files are lost or were changed.
    """
    version = version_at(name, number, request)
    if version is None:
        raise Invalid(
            f"There is no version {number} of {name!r}, or you cannot see it.", field="source", code="bad_source"
        )
    observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.project, resource=request.path)
    with readable(version):
        version.require_downloadable()
        copied = version.stored(folder.with_name("copied"))
    for path in copied.iterdir():
        path.rename(folder / path.name)
    return Received(folder, (f"Copied from {version.served_name}.",))


def version_at(name: str, number: int, request: Request) -> AdapterVersion | None:
    """Return the version of the named adapter; None if there is none that the caller sees.

    Raises NotAllowed without scope read in its project.
    """
    adapters = seen_in(Adapter.objects.select_related("project", "base_model"), "project", request)
    adapter = named(adapters, "project", "slug", name)
    if adapter is None:
        return None
    require_scope(request, adapter.project, Scope.READ)
    version: AdapterVersion | None = adapter.versions.filter(number=number).first()
    if version:
        version.adapter = adapter
    return version


def version_or_404(name: str, number: int, request: Request) -> AdapterVersion:
    """Return the version as `version_at` does. Raises Http404 if there is none."""
    version = version_at(name, number, request)
    if version is None:
        raise Http404
    return version
