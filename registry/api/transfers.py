"""REST: transfer of files directly between a client and an S3 store, by links that need no key and last an hour."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core import signing
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of
from adapterhub.api.views import ProjectViewSet
from adapterhub.artifacts import ArtifactError, S3Store
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Conflict, Invalid, Unavailable
from adapterhub.core.tenancy import Scope
from adapterhub.workspace import store
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import WEIGHTS
from registry.models import Adapter

LINK_S = 3600
MOST_BYTES = 8 * 2**30
SCOPES = {"links": Scope.READ, "uploads": Scope.PUBLISH}


class LinksSerializer(serializers.Serializer[Any]):
    """Links for downloading a version's files from the object store."""

    digest = serializers.CharField()
    expires_s = serializers.IntegerField()
    urls = serializers.DictField(child=serializers.URLField(), help_text="GET each; manifest.json names every sha256.")


class NewUploadSerializer(serializers.Serializer[Any]):
    """Links for uploading a version's files to the object store."""

    upload = serializers.CharField(help_text="Send it as `upload` when both files are there.")
    expires_s = serializers.IntegerField()
    urls = serializers.DictField(child=serializers.URLField(), help_text="PUT each file to its URL.")


class VersionTransfers(ProjectViewSet):
    """Actions that create links to the object store, so that weights do not pass through the web process.

    `adapter` is the viewset's method that returns the adapter in the path.
    """

    adapter: Callable[[], Adapter]

    @extend_schema(responses=LinksSerializer)
    @action(detail=True)
    def links(self, request: Request, slug: str, number: str) -> Response:
        """Return a link to each file of the version in the store, valid for an hour. Verify each file by its sha256.

        The request is recorded as a read of the weights.
        """
        version = self.get_object()
        try:
            version.require_downloadable()
        except ArtifactError as error:
            raise Unavailable(
                f"The files of {version} are not available: {error}", code="artifact_unreadable"
            ) from error
        observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.adapter.project, resource=request.path)
        urls = bucket().download_urls(version.digest, LINK_S)
        return Response({"digest": version.digest, "expires_s": LINK_S, "urls": urls})

    @extend_schema(request=None, responses={201: NewUploadSerializer})
    @action(detail=False, methods=["post"])
    def uploads(self, request: Request, slug: str) -> Response:
        """Create links, valid for an hour, for uploading the two files from which a version is then created."""
        adapter, key = self.adapter(), uuid.uuid4().hex
        urls = {name: bucket().upload_url(f"{key}/{name}", LINK_S) for name in (WEIGHTS, CONFIG)}
        upload = signing.dumps({"adapter": adapter.pk, "key": key}, salt="upload")
        return Response({"upload": upload, "expires_s": LINK_S, "urls": urls}, 201)


def bucket() -> S3Store:
    """Return the artifact store. Raises Conflict if it is a folder, which has no links."""
    artifacts = store()
    if not isinstance(artifacts, S3Store):
        raise Conflict(
            "The artifact store is a folder and has no links: upload and download the files here.", code="no_links"
        )
    return artifacts


def take(upload: str, adapter: Adapter, folder: Path) -> None:
    """Move the files of `upload`, the signed name that `uploads` gave out, from the store into the folder.

    Raises Invalid if the upload is over an hour old or of another adapter, or a file is missing or too large, and
    Conflict if the store is a folder.
    """
    try:
        claims = signing.loads(upload, salt="upload", max_age=LINK_S)
    except signing.BadSignature:
        claims = {}
    # One refusal for all: whoever tries an upload of another project must not learn that there is one.
    if claims.get("adapter") != adapter.pk:
        raise Invalid(
            "This upload is unknown, over an hour old or of another adapter: start a new one.", field="upload"
        )
    try:
        for name in (WEIGHTS, CONFIG):
            bucket().take(f"{claims['key']}/{name}", folder / name, MOST_BYTES)
    except ArtifactError as error:
        raise Invalid(str(error), field="upload") from error
