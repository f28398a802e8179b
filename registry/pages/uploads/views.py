"""Upload of an adapter in the browser: the check of the chosen files, and the version that is made from them."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.api.pages import accepts_files, errors_on
from adapterhub.api.permissions import actor_of
from adapterhub.workspace import scratch
from registry.adapter_files.findings import Finding
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.manifest import parsed
from registry.adapter_files.reducible import is_reducible
from registry.adapter_files.selection import select
from registry.models import AdapterVersion, StagedFile, VersionStatus
from registry.pages.forms import cleaned
from registry.pages.uploads import parts
from registry.pages.uploads.form import UploadForm
from registry.pages.uploads.parts import adapter_to_publish
from registry.uploads import staging
from registry.uploads.receiving import publish, receive, receive_local

PART, PAGE = "registry/_upload_answer.html", "registry/upload.html"


def options(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `inspection.inspect` that the form's fields give."""
    return {"any_scale": fields["fold"], "confirmation": fields["confirm_base"]}


def answer(inspection: Inspection, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the template context of a check: its findings, and if the adapter is accepted, can be or will be kept.

    To keep is to store an adapter that engines cannot serve; the form's field `keep` asks for that.
    """
    can_keep = is_reducible(inspection)
    return {
        "inspection": inspection,
        "can_keep": can_keep,
        "is_kept": can_keep and fields["keep"],
        "is_accepted": inspection.is_accepted or (can_keep and fields["keep"]),
    }


@login_required
@require_POST
@accepts_files
def check_upload(request: HttpRequest, slug: str) -> HttpResponse:
    """Check the adapter in a chosen folder by its configuration and the first bytes of its weights; show the findings.

    The field `listing` has all paths and sizes; each file in `heads` has those bytes, and its name is the index of its
    path in `listing`. Raises Http404 and NotAllowed as `adapter_to_publish` does.
    """
    adapter = adapter_to_publish(request, slug)
    fields = cleaned(UploadForm(request.POST))
    sizes: dict[str, int] = dict(fields["listing"])
    paths = list(sizes)
    heads = {file.name: file.read() for file in request.FILES.getlist("heads")}
    chosen = parsed(lambda: select(paths))
    if isinstance(chosen, Finding):
        return render(request, PART, answer(Inspection({}, (chosen,)), fields))
    config, *weights = [(heads.get(str(paths.index(path)), b""), sizes[path]) for path in chosen.files]
    inspection = adapter.inspect(config[0], weights, **options(fields))
    context = {"chosen": json.dumps(chosen.files), "notes": chosen.notes}
    return render(request, PART, context | answer(inspection, fields))


@login_required
@accepts_files
def upload_version(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the form, or publish the adapter among the files as the next version; if it has faults, show them all.

    A script gets the faults as a part of the page, and the URL of the new version in the header `HX-Redirect`. Raises
    Http404 and NotAllowed as `adapter_to_publish` does.
    """
    adapter = adapter_to_publish(request, slug)
    is_script = bool(request.headers.get("HX-Request"))
    form = UploadForm(request.POST if request.method == "POST" else None)
    context: dict[str, Any] = {"adapter": adapter, "upload": form, "part_bytes": parts.PART_BYTES}
    if form.is_valid():
        with errors_on(form), scratch() as place:
            paths = [path for path, _ in form.cleaned_data["listing"]]
            staged = parts.whole_files(request, adapter, form.cleaned_data["staged"])
            if staged:
                received = receive_local(parts.taken(staged, place / "sent"), place / "given", paths)
            else:
                received = receive(request.FILES.getlist("files"), place / "given", paths)
            inspection = adapter.inspect_folder(received.folder, **options(form.cleaned_data))
            context |= {"notes": received.notes} | answer(inspection, form.cleaned_data)
            if context["is_accepted"]:
                version = publish(
                    adapter,
                    received.folder,
                    fold=form.cleaned_data["fold"],
                    keep=context["is_kept"],
                    confirmation=form.cleaned_data["confirm_base"],
                    lineage={"conversions": list(received.notes)} if received.notes else {},
                    by=actor_of(request),
                )
                staging.drop(StagedFile.objects.filter(pk__in=[file.pk for file in staged.values()]))
                return published(request, version, is_script=is_script)
    context |= {"is_accepted": False, "is_kept": False}
    return render(request, PART if is_script else PAGE, context, status=422 if request.method == "POST" else 200)


def published(request: HttpRequest, version: AdapterVersion, *, is_script: bool) -> HttpResponse:
    """Redirect to the new version's page; a script gets its URL in the header `HX-Redirect`."""
    is_kept = version.status == VersionStatus.UNSERVABLE
    messages.success(request, f"{version} is {'kept' if is_kept else 'stored; its numbers are being checked'}.")
    response = redirect("version", slug=version.adapter.ref, number=version.number)
    return HttpResponse(status=204, headers={"HX-Redirect": response.url}) if is_script else response
