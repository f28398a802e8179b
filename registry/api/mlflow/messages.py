"""Adapters and versions as MLflow's RegisteredModel and ModelVersion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from registry.api.mlflow.base import OURS, millis
from registry.models import Adapter, AdapterVersion, Alias, VersionStatus

Json = dict[str, Any]
# A version that waits for its check is awaited by the client; a rejected one fails with the check's message.
STATUS = {VersionStatus.CHECKING: "PENDING_REGISTRATION", VersionStatus.REJECTED: "FAILED_REGISTRATION"}
NEWEST = 1


def tag(text: str) -> Json:
    """Return an adapter's tag, a text `key=value` or a bare word, as MLflow's dict with `key` and `value`."""
    key, _, value = text.partition("=")
    return {"key": key, "value": value}


def pairs(tags: dict[str, str]) -> list[Json]:
    """Return tags as MLflow's list of keys and values."""
    return [{"key": key, "value": value} for key, value in tags.items()]


def aliases_of(adapters: Iterable[Adapter]) -> dict[int, list[Alias]]:
    """Return the aliases that serve a version of each adapter, by the adapter's key."""
    rows = Alias.objects.filter(version__adapter__in=[adapter.pk for adapter in adapters]).select_related("version")
    by_adapter = defaultdict(list)
    for alias in rows:
        by_adapter[alias.version.adapter_id].append(alias)
    return by_adapter


def registered_model(adapter: Adapter, name: str, aliases: list[Alias]) -> Json:
    """Return the adapter as MLflow's registered model `name`, with its newest version and with `aliases`."""
    newest = adapter.versions.order_by("-number")[:NEWEST]
    ours = {f"{OURS}project": adapter.project.slug, f"{OURS}base_model": adapter.base_model.slug}
    return {
        "name": name,
        "creation_timestamp": millis(adapter.created_at),
        "last_updated_timestamp": max(
            [millis(adapter.created_at), *(millis(version.created_at) for version in newest)]
        ),
        "description": adapter.description,
        "tags": [*map(tag, adapter.tags), *pairs(ours)],
        "aliases": [{"alias": alias.name, "version": str(alias.version.number)} for alias in aliases],
        "latest_versions": [model_version(version, name, adapter, aliases) for version in newest],
    }


def model_version(version: AdapterVersion, name: str, adapter: Adapter, aliases: list[Alias]) -> Json:
    """Return the version as MLflow's model version of the registered model `name`.

    Of `aliases`, those of the adapter, only the ones that serve this version are named.
    """
    sent = version.lineage.get("mlflow", {})
    ours = {
        f"{OURS}served_name": version.served_name,
        f"{OURS}digest": version.digest,
        f"{OURS}status": version.status,
        f"{OURS}base_model": adapter.base_model.slug,
    }
    return {
        "name": name,
        "version": str(version.number),
        "creation_timestamp": millis(version.created_at),
        "last_updated_timestamp": millis(version.created_at),
        "user_id": version.created_by.get_username() if version.created_by else "",
        "current_stage": "Archived" if version.status == VersionStatus.ARCHIVED else "None",
        "description": sent.get("description", ""),
        "source": artifact_uri(version),
        "run_id": sent.get("run_id", ""),
        "run_link": sent.get("run_link", ""),
        "status": STATUS.get(VersionStatus(version.status), "READY"),
        "status_message": version.message,
        "tags": pairs({**sent.get("tags", {}), **ours}),
        "aliases": [alias.name for alias in aliases if alias.version_id == version.pk],
    }


def artifact_uri(version: AdapterVersion) -> str:
    """Return the address of the version's files in the artifact API."""
    return f"mlflow-artifacts:/versions/{version.adapter.ref}/{version.number}"
