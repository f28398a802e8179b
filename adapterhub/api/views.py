"""The base of every REST resource: tenancy, scopes, idempotency."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import Any, Protocol, cast

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.utils.timezone import now
from rest_framework import serializers, viewsets
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.etags import conditional
from adapterhub.api.json_types import require_types
from adapterhub.api.models import IdempotentRequest
from adapterhub.api.parsers import require_texts
from adapterhub.api.permissions import require_used_scopes, seen_in, used_scopes
from adapterhub.api.throttling import headers_of
from adapterhub.api.unknown_fields import require_known
from adapterhub.core.errors import Conflict, Invalid, TooLarge
from adapterhub.core.tenancy import Scope, Tenant
from adapterhub.core.unpublished_changes import is_unpublished
from adapterhub.encryption import box

SHOWN_ONCE = "Shown once: null when the answer is repeated for an Idempotency-Key."
SHORT_BODY_BYTES, MOST_VALUES = 100_000, 200_000
KEY = re.compile(r"[!-~]{1,255}")
IN_FLIGHT_FOR = timedelta(minutes=10)


class ProjectViewSet(viewsets.GenericViewSet[Any]):
    """The base of resources whose objects belong to projects; an object of a project that callers do not see is 404."""

    project_path = "project"
    # No key of ours has other characters; a NUL would reach the database.
    lookup_value_regex = r"[-\w]+"
    scopes: dict[str, str] = {}
    # Actions to which files may be uploaded, so that their requests may be larger than others.
    takes_files: tuple[str, ...] = ()
    # Actions whose body is one file, which no parser reads.
    takes_raw_body: tuple[str, ...] = ()
    # Query parameters that filter the list: parameter -> field.
    filters: dict[str, str] = {}
    # JSON of other rows that a list shows, which counts for the size of its pages.
    weighs: tuple[str, ...] = ()
    # Fields of bodies that may be as long as the body.
    long_fields: frozenset[str] = frozenset()

    def get_queryset(self) -> QuerySet[Any]:
        """Return the rows of the projects that the caller sees; for a list, of those where the caller has its scope."""
        queryset = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return queryset.none()
        # The rows of a list are filtered here: no object permission is checked for them.
        listing = getattr(self, "action", None) == "list"
        scope = self.scopes.get("list", Scope.READ) if listing else ""
        return seen_in(queryset, self.project_path, self.request, scope)

    def project_of(self, record: Any) -> Tenant | None:
        """Return the project whose scopes decide who may act on the object; None for an object of the installation."""
        project: Any = record
        for name in self.project_path.split("__"):
            project = getattr(project, name)
        return cast("Tenant | None", project)

    def read(self, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """Return the request's body, validated by the serializer.

        Raises Invalid for long texts, unknown fields and wrong types, and DRF's ValidationError for the rest.
        """
        require_texts(self.request.data, self.long_fields)
        serializer = serializer_class(data=self.request.data, context={"request": self.request})
        require_known(serializer, self.request.data)
        if not isinstance(self.request.data, QueryDict):
            require_types(serializer, self.request.data)
        serializer.is_valid(raise_exception=True)
        validated: dict[str, Any] = serializer.validated_data
        return validated

    def write(self, record: Model, status: int = 200) -> Response:
        """Return the object as the resource's JSON, with its ETag if it has one; 304 if If-None-Match names that."""
        response = Response(self.get_serializer(record).data, status)
        return conditional(self.request, record, response) if hasattr(record, "etag") else response

    def get_serializer(self, *args: Any, **kwargs: Any) -> serializers.BaseSerializer[Any]:
        """Return the serializer, limited to the fields that the query names. Raises Invalid for an unknown one."""
        serializer = super().get_serializer(*args, **kwargs)
        if getattr(self, "action", None) in ("list", "retrieve") and (names := self.request.query_params.get("fields")):
            keep_only(cast("Selectable", getattr(serializer, "child", serializer)), names.split(","))
        return serializer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check size and characters of the request, and claim its idempotency key.

        Raises TooLarge and Invalid, and what `claim_key` raises.
        """
        super().initial(request, *args, **kwargs)
        if self.action not in self.takes_raw_body:
            require_small(request)
            require_few_values(request)
        require_texts(request.query_params)
        self.idempotent = None
        key = request.headers.get("Idempotency-Key")
        if request.method == "POST" and key is not None:
            self.idempotent = claim_key(request, key)

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        """Return the response with rate-limit headers; a change that has not reached the routers is answered with 202.

        Also stores the answer under the request's idempotency key.
        """
        response = super().finalize_response(request, response, *args, **kwargs)
        if is_unpublished() and response.status_code < 300:
            tell_unpublished(response)
        if entry := getattr(self, "idempotent", None):
            keep_answer(entry, request, response)
        if draw := getattr(request, "taken", None):
            for name, value in headers_of(draw).items():
                response[name] = value
        return response

    def handle_exception(self, exc: Exception) -> Response:
        """Return the stored answer of a request that was sent before, else DRF's response to the exception."""
        if isinstance(exc, Replay):
            # A plain response is sent as it is; DRF's would be rendered again.
            return cast(Response, replayed(exc.entry))
        return super().handle_exception(exc)


def tell_unpublished(response: Response) -> None:
    """Change the response to 202 with `published: false`: the change is committed, but has not reached the routers."""
    given = response.data if isinstance(response.data, dict) else {}
    response.status_code, response.data = 202, {**given, "published": False}


def require_small(request: Request) -> None:
    """Raise TooLarge if the announced length of the body is over the limit, as parsers read it into memory.

    Forms with files may be larger.
    """
    is_form = request.content_type.startswith("multipart/")
    most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    if not is_form and int(request.META.get("CONTENT_LENGTH") or 0) > most:
        raise TooLarge(f"A body may have at most {most} bytes: send a file as multipart/form-data.")


def require_few_values(request: Request) -> None:
    """Raise TooLarge for a JSON body of too many values, each of which takes far more memory than its letters.

    Bodies that are announced as short, and forms, are not checked.
    """
    length = request.META.get("CONTENT_LENGTH") or ""
    is_short = length.isdigit() and int(length) <= SHORT_BODY_BYTES
    if not is_short and not request.content_type.startswith("multipart/"):
        body = request._request.body
        if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
            raise TooLarge(f"A body may have at most {MOST_VALUES:,} values: send it in parts.", code="too_many_values")


class Selectable(serializers.Serializer[Any]):
    """A serializer whose fields `?fields=` selects; `wanted` holds their names, for those that are costly to make."""

    wanted: list[str]


def keep_only(serializer: Selectable, names: list[str]) -> None:
    """Remove the fields that `?fields=` does not name from the serializer. Raises Invalid for an unknown one."""
    known = {*serializer.fields, *getattr(serializer, "more_fields", ())}
    if unknown := [name for name in names if name not in known]:
        message = f"There is no field {unknown[0][:50]!r}; the fields are {', '.join(sorted(known))}."
        raise Invalid(message, field="fields", code="unknown_field")
    for name in set(serializer.fields) - set(names):
        serializer.fields.pop(name)
    serializer.wanted = names


class Writing(Protocol):
    """The interface of a resource that finds and writes one object."""

    def get_object(self) -> Any:
        """Return the object that the path names."""

    def write(self, record: Model, status: int = 200) -> Response:
        """Return the object as the resource's JSON."""


class Retrieving:
    """Mixin for the retrieval of one object, with its ETag if it has one."""

    def retrieve(self: Writing, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return one object."""
        return self.write(self.get_object())


class Replay(Exception):
    """Raised when the answer for an idempotency key is stored already; it carries the row."""

    def __init__(self, entry: IdempotentRequest) -> None:
        self.entry = entry


def claim_key(request: Request, key: str) -> IdempotentRequest:
    """Return a new row that claims the key for this request, in place of a claim left unanswered for IN_FLIGHT_FOR.

    Raises Replay if an earlier request with the key was answered, Conflict (409) if it is in flight, Invalid (422) if
    it had another body or the key is no key, and NotAllowed (403) if the caller lost a scope that the answer needed.
    """
    if not KEY.fullmatch(key):
        raise Invalid(
            "An Idempotency-Key is 1 to 255 visible ASCII characters: use another one.", field="Idempotency-Key"
        )
    identity = {"caller": caller_of(request), "key": key, "path": request.path}
    fingerprint = hashlib.sha256(request_bytes(request)).hexdigest()
    IdempotentRequest.objects.filter(status=None, created_at__lt=now() - IN_FLIGHT_FOR, **identity).delete()
    try:
        with transaction.atomic():
            return IdempotentRequest.objects.create(fingerprint=fingerprint, **identity)
    except IntegrityError:
        entry = IdempotentRequest.objects.get(**identity)
    if entry.fingerprint != fingerprint:
        raise Invalid("This Idempotency-Key was used with a different body: use a new key.", code="key_reused")
    if entry.status is None:
        raise Conflict(
            "A request with this Idempotency-Key is still being processed: try again later.", code="in_flight"
        )
    require_used_scopes(request, entry.used_scopes)
    raise Replay(entry)


def caller_of(request: Request) -> str:
    """Return the caller as text, `token:ID` or `user:ID`, under which idempotency keys are unique."""
    return f"token:{request.auth.pk}" if request.auth else f"user:{request.user.pk}"


def request_bytes(request: Request) -> bytes:
    """Return the bytes of the body that its fingerprint is made of; of an upload, its fields and its files' sha256."""
    if not request.FILES:
        return repr(sorted(request.data.items()) if hasattr(request.data, "items") else request.data).encode()
    parts = [f"{name}={value}" for name, value in sorted(request.POST.items())]
    for name, file in sorted(request.FILES.items()):
        parts.append(f"{name}={hashlib.file_digest(file, 'sha256').hexdigest()}")
        file.seek(0)
    return "\n".join(parts).encode()


def replayed(entry: IdempotentRequest) -> HttpResponse:
    """Return the first answer again, byte for byte, with the header Idempotency-Replayed."""
    content = box("answer").decrypt(bytes(entry.sealed or b""))
    return HttpResponse(content, "application/json", entry.status, headers={"Idempotency-Replayed": "true"})


class ShownOnce(Response):
    """A response with a secret in one field, which is null when the answer is repeated for an Idempotency-Key."""

    def __init__(self, data: dict[str, Any], status: int, *, once: str) -> None:
        super().__init__(data, status)
        self.repeatable = {**data, once: None}


def keep_answer(entry: IdempotentRequest, request: Request, response: Response) -> None:
    """Store the answer, encrypted, to be sent again for the same key.

    If the request was refused or failed, delete the key, so that it can be used again.
    """
    if response.status_code >= 400:
        entry.delete()
        return
    entry.status = response.status_code
    content = response.render().content
    if isinstance(response, ShownOnce):
        content = JSONRenderer().render(response.repeatable)
    entry.sealed = box("answer").encrypt(content)
    entry.used_scopes = used_scopes(request)
    entry.save(update_fields=["status", "sealed", "used_scopes"])


def healthz(request: HttpRequest) -> JsonResponse:
    """Return 200: the web process is alive."""
    return JsonResponse({"status": "ok"})
