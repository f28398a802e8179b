"""Storage of training: the artifact store, and a folder of this host for work in progress."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from adapterhub.artifacts import ArtifactStore, open_store


def store() -> ArtifactStore:
    """Open the installation's artifact store."""
    return open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL, addressing=settings.S3_ADDRESSING)


def scratch() -> Path:
    """Return the work folder; creates it on the first call, with access for this user only."""
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    return settings.WORK_DIR
