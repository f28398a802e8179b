"""MLflow's artifact API: files on their way to a version below `uploads/`, the files of versions below `versions/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from django.http import FileResponse, Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project
from adapterhub.api.permissions import actor_of, projects_of, require_scope
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from adapterhub.scratch_files import temporary_file
from adapterhub.workspace import scratch, work_folder
from registry.api.mlflow.base import MlflowViewSet
from registry.api.mlflow.sources import ROUTE, version_or_404
from registry.exports.zip_export import file_sizes, verified_file
from registry.models import StagedFile
from registry.models.staged_file import OF_BROWSERS
from registry.uploads.staging import drop, replace, take

MOST_SEGMENTS, LONGEST_PATH = 20, 900


class PathSerializer(serializers.Serializer[Any]):
    """The folder whose files are listed."""

    path = serializers.CharField(required=False, allow_blank=True, default="", max_length=LONGEST_PATH)


class ArtifactViewSet(MlflowViewSet):
    """Files by their paths: `uploads/<project>/...` is written and read, `versions/<adapter>/<number>/...` is read."""

    takes_files = ("send",)
    takes_raw_body = ("send",)
    scopes = {"send": Scope.PUBLISH, "fetch": Scope.READ, "contents": Scope.READ, "forget": Scope.PUBLISH}

    def send(self, request: Request, path: str) -> Response:
        """Keep the body as the file at the path, until a version is made of it, and at most for a day."""
        project, name = self.upload_place(path)
        replace(project, name, cast(Any, request._request), by=actor_of(request))
        return Response({})

    def forget(self, request: Request, path: str) -> Response:
        """Delete the uploaded file at the path, or all files of the folder. 404 if there are none."""
        project, name = self.upload_place(path)
        files = StagedFile.objects.filter(project=project)
        if not drop(files.filter(path=name) | files.below(name)):
            raise Http404
        return Response({})

    def fetch(self, request: Request, path: str) -> FileResponse:
        """Return the content of one file. Reading any file of a version is recorded as a read of the version's weights.

        404 for an unknown file.
        """
        kind, _, rest = path.strip("/").partition("/")
        if kind == "versions":
            version = self.version_place(rest)
            observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.project, resource=request.path)
            name = rest.split("/", 2)[2] if rest.count("/") >= 2 else ""
            return FileResponse(verified_file(version, name), content_type="application/octet-stream")
        project, name = self.upload_place(path)
        file = StagedFile.objects.filter(project=project, path=name).first()
        if file is None:
            raise Http404
        with (
            scratch() as folder,
            temporary_file(work_folder()) as copy,
            take(file, folder / "file").open("rb") as source,
        ):
            while block := source.read(2**20):
                copy.write(block)
        return FileResponse(copy, content_type="application/octet-stream")

    def contents(self, request: Request) -> Response:
        """List the files and folders that lie directly in the folder at the path; the list is empty if there are none.

        404 for an unknown version or project.
        """
        path = self.query(PathSerializer)["path"].strip("/")
        kind, _, rest = path.partition("/")
        if kind == "versions":
            version = self.version_place(rest)
            inside = rest.split("/", 2)[2:]
            sizes = file_sizes(version) if not inside else {}
        else:
            project, name = self.upload_place(path, is_folder=True)
            files = StagedFile.objects.filter(project=project)
            below = files.below(name) if name else files.exclude(path__startswith=f"{OF_BROWSERS}/")
            sizes = {file.path[len(name) + 1 if name else 0 :]: file.size_bytes for file in below}
        return Response({"files": list(entries(sizes))})

    def version_place(self, rest: str) -> Any:
        """Return the version of `<adapter>/<number>/...`.

        Raises Http404 if the caller sees no such version, and NotAllowed without scope read.
        """
        name, _, further = rest.partition("/")
        number = further.partition("/")[0]
        if not (number.isdecimal() and number.isascii() and len(number) < 10):
            raise Http404
        return version_or_404(name, int(number), self.request)

    def upload_place(self, path: str, *, is_folder: bool = False) -> tuple[Project, str]:
        """Return the project and the path in it of `uploads/<project>/...`.

        The path may be empty only with `is_folder`. Raises Invalid for another place or a path that is too long,
        Http404 for a project that is archived or that the caller does not see, and NotAllowed without scope publish.
        """
        kind, _, rest = path.strip("/").partition("/")
        slug, _, name = rest.partition("/")
        segments = name.split("/") if name else []
        if kind != "uploads" or not slug or not (name or is_folder):
            raise Invalid(f"{path[:200]!r} is no place for files. {ROUTE}", field="path", code="bad_path")
        if segments[:1] == [OF_BROWSERS]:
            raise Http404
        if len(name) > LONGEST_PATH or len(segments) > MOST_SEGMENTS or {"", ".", ".."} & {*segments}:
            raise Invalid(
                f"A path has at most {MOST_SEGMENTS} parts and {LONGEST_PATH} letters, none of them empty, . or ..",
                field="path",
                code="bad_path",
            )
        project = projects_of(self.request).filter(slug=slug.replace("\0", ""), archived_at=None).first()
        if project is None:
            raise Http404
        require_scope(self.request, project, Scope.PUBLISH)
        return project, name


def entries(sizes: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield MLflow's entries for what lies directly in a folder: each subfolder once, then each file with its size.

    `sizes` maps every path below the folder to its bytes.
    """
    folders = sorted({path.partition("/")[0] for path in sizes if "/" in path})
    yield from ({"path": folder, "is_dir": True} for folder in folders)
    for path, size in sizes.items():
        if "/" not in path:
            yield {"path": path, "is_dir": False, "file_size": size}
