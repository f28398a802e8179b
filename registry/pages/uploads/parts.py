"""Large files of an upload in the browser: they come in parts, so that one that broke off goes on where it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from adapterhub.api.pages import accepts_files, visible_or_404
from adapterhub.api.permissions import actor_of, require_scope
from adapterhub.core.errors import Conflict
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, StagedFile
from registry.models.staged_file import OF_BROWSERS
from registry.pages.forms import cleaned
from registry.pages.uploads.form import LONGEST_PATH
from registry.uploads import staging

PART_BYTES = 8 * 2**20
MOST_SIZE = 2**48
Chosen = tuple[str, int, int]


class PartForm(forms.Form):
    """A file that a browser sends in parts, and the place of the part that comes with it, if one does."""

    name = forms.CharField(max_length=LONGEST_PATH)
    size = forms.IntegerField(min_value=1, max_value=MOST_SIZE)
    modified = forms.IntegerField(min_value=0, max_value=MOST_SIZE)
    offset = forms.IntegerField(min_value=0, max_value=MOST_SIZE, required=False)


def adapter_to_publish(request: HttpRequest, slug: str) -> Adapter:
    """Return the adapter in the URL: `slug` is its own, with or without the project's name before it.

    Raises Http404 if the person does not see it, Conflict if several projects have one of this slug, and NotAllowed
    without scope publish.
    """
    adapter = visible_or_404(request, Adapter.objects.select_related("project", "base_model"), slug=slug)
    require_scope(request, adapter.project, Scope.PUBLISH)
    return adapter


def place_of(request: HttpRequest, adapter: Adapter, chosen: Chosen) -> str:
    """Return the path under which the person's file for the adapter is staged.

    `chosen` is the file's name, size in bytes and time of change in milliseconds; the same three give the same path.
    """
    digest = hashlib.sha256("\n".join(map(str, chosen)).encode(errors="replace")).hexdigest()
    return f"{OF_BROWSERS}/{adapter.pk}/{request.user.pk}/{digest}"


@login_required
@require_POST
@accepts_files
def take_part(request: HttpRequest, slug: str) -> JsonResponse:
    """Store the part of a file that begins at the byte `offset`, and answer {received: bytes of the file so far}.

    Without a part nothing is stored: a browser learns where to go on. Raises Http404 and NotAllowed as
    `adapter_to_publish` does, Invalid for a bad form, Conflict if the part ends behind the end of its file or does not
    begin where the arrived bytes end, and as `staging.append` does.
    """
    adapter = adapter_to_publish(request, slug)
    fields = cleaned(PartForm(request.POST))
    place = place_of(request, adapter, (fields["name"], fields["size"], fields["modified"]))
    part = request.FILES.get("part")
    if part is not None and part.size:
        if (fields["offset"] or 0) + part.size > fields["size"]:
            raise Conflict("This part ends behind the end of its file: choose the file again.", code="wrong_offset")
        file = staging.append(adapter.project, place, fields["offset"] or 0, part, by=actor_of(request))
        return JsonResponse({"received": file.size_bytes})
    known = StagedFile.objects.filter(project=adapter.project, path=place).first()
    return JsonResponse({"received": known.size_bytes if known else 0})


def whole_files(request: HttpRequest, adapter: Adapter, chosen: Sequence[Chosen]) -> dict[str, StagedFile]:
    """Return the staged files by the names that were chosen. Raises Conflict for one that has not arrived whole.

    `chosen` are those of `place_of`.
    """
    files = {}
    for name, size, modified in chosen:
        place = place_of(request, adapter, (name, size, modified))
        file = StagedFile.objects.filter(project=adapter.project, path=place, size_bytes=size).first()
        if file is None:
            raise Conflict(f"{name[:100]} has not arrived as a whole: publish again.", code="upload_dropped")
        files[name] = file
    return files


def taken(files: dict[str, StagedFile], folder: Path) -> dict[str, Path]:
    """Write the staged files into the new folder, under names of our own; return them by the sender's names."""
    folder.mkdir()
    return {name: staging.take(file, folder / str(place)) for place, (name, file) in enumerate(files.items())}
