"""The Helm chart as Helm's own code renders it, without a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

from adapterhub.environment import TABLE

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/adapterhub"
VALUES = ("small", "production", "airgapped")
Manifest = dict[str, Any]


def values_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / f"values-{name}.yaml").read_text()))


def render(values: dict[str, Any], chart: Path = CHART, name: str = "hub") -> list[Manifest]:
    """Raises HelmError for values that the chart refuses."""
    with helm_python.Chart.load(str(chart)) as loaded:
        texts = loaded.render(values, name=name, namespace="ml").values()
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


@cache
def rendered(name: str) -> list[Manifest]:
    return render(values_of(name))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and the template of everything that starts pods."""
    for manifest in of_kind(manifests, "Deployment", "Job", "CronJob"):
        spec = manifest["spec"]["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else manifest["spec"]
        yield manifest["metadata"]["name"].removeprefix("hub-"), spec["template"]


def pod(manifests: list[Manifest], name: str) -> Manifest:
    return dict(pods(manifests))[name]["spec"]


def container(manifests: list[Manifest], name: str) -> Manifest:
    [only] = pod(manifests, name)["containers"]
    return dict(only)


def is_ours(one: Manifest) -> bool:
    return bool(re.search(r"(^|/)adapterhub(-\w+)?:", one["image"]))


def known(name: str) -> bool:
    secret = TABLE.get(name.removesuffix("_FILE"))
    return name in TABLE or bool(secret and secret.secret)


def unknown_settings(manifests: list[Manifest]) -> set[str]:
    """The variables of our containers that no line of the table has; REMAP_SIGTERM is Celery's."""
    ours = [one for _, template in pods(manifests) for one in template["spec"]["containers"] if is_ours(one)]
    names = {variable["name"] for one in ours for variable in one.get("env", [])}
    return {name for name in names - {"REMAP_SIGTERM"} if not known(name)}
