"""What the routers report about answers becomes rows: response -> version."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import redis

from adapterhub.accounts.models import Project
from registry.channels import OUTCOMES, valkey
from registry.models import AdapterVersion, Response

GROUP = "registry"
BATCH = 500


def collect() -> int:
    """Read the reports that are waiting and keep them; returns how many. A report read twice changes nothing."""
    kept = 0
    with valkey() as client:
        ensure_group(client)
        for start in ("0", ">"):
            while entries := read(client, start):
                keep([json.loads(fields[b"o"]) for _, fields in entries])
                client.xack(OUTCOMES, GROUP, *(entry_id for entry_id, _ in entries))
                kept += len(entries)
    return kept


def ensure_group(client: redis.Redis) -> None:
    try:
        client.xgroup_create(OUTCOMES, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


def read(client: redis.Redis, start: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Up to BATCH reports: those a dead reader left (start 0), or new ones (>)."""
    streams = client.xreadgroup(GROUP, "worker", {OUTCOMES: start}, count=BATCH)
    return streams[0][1] if streams else []


def keep(reports: list[dict[str, Any]]) -> None:
    versions = AdapterVersion.objects.in_bulk({report["version"] for report in reports}, field_name="served_name")
    projects = {project.slug: project for project in Project.objects.all()}
    rows = [
        response_row(report, projects[report["project"]], versions[report["version"]])
        for report in reports
        if report["version"] in versions and report["project"] in projects
    ]
    Response.objects.bulk_create(rows, ignore_conflicts=True)


def response_row(report: dict[str, Any], project: Project, version: AdapterVersion) -> Response:
    return Response(
        id=report["response_id"],
        project=project,
        alias_name=report["alias"] or "",
        version=version,
        arm=report["arm"],
        is_sticky=report["sticky"],
        status=report["status"],
        at=datetime.fromtimestamp(report["at"], UTC),
        ttft_ms=report["ttft_ms"],
        total_ms=report["total_ms"],
        prompt_tokens=report["prompt_tokens"],
        completion_tokens=report["completion_tokens"],
    )
