"""MLflow's own client registers, finds, moves and loads adapters here by one address and a token."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from django.db import connections

from adapterhub.audit.access_log import seal
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, BaseModel, Cluster, StagedFile, VersionStatus
from registry.uploads import verification
from tests.builders import write_adapter
from tests.tools import MLFLOW, ROOT, requires
from tests.waiting import wait_until


@pytest.mark.slow
@requires("mlflow")
@pytest.mark.threat("A5", "B1")
def test_a_pipeline_of_mlflows_client_runs_against_one_address(
    site: str, ci: str, alias: Alias, candidate: AdapterVersion, cluster: Cluster, base_model: BaseModel, tmp_path: Path
) -> None:
    Alias.objects.update(policy={"quorum": 1})
    folders = [write_adapter(tmp_path / f"sent-{seed}", seed=seed) for seed in (71, 72)]
    (tmp_path / "target").mkdir()
    env = os.environ | {
        "MLFLOW_TRACKING_URI": site,
        "MLFLOW_TRACKING_TOKEN": ci,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    command = [str(MLFLOW.with_name("python")), str(ROOT / "tests/registry/mlflow/drive_mlflow.py")]
    arguments = [*map(str, folders), str(tmp_path / "target")]
    with subprocess.Popen([*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        # The client waits while a version is pending; no worker runs here, so that the test ends each check.
        checker = threading.Thread(target=check_until_end, args=(client,))
        checker.start()
        output = client.communicate(timeout=240)[0].decode()
        checker.join()
    assert client.returncode == 0, output
    assert not StagedFile.objects.exists(), "what became a version is dropped"
    versions = AdapterVersion.objects.filter(adapter__slug="fresh").order_by("number")
    assert versions[0].lineage["mlflow"]["source"] == "mlflow-artifacts:/uploads/eu/run-17/adapter"
    assert versions[0].signature, "a version from MLflow is signed as every other"
    seal()
    tags = list(AuditEvent.objects.filter(actor_name__contains="ci").values_list("tag", flat=True))
    for tag in ("adapter:created", "adapter:changed", "adapter_version:published", "adapter_version:read"):
        assert tag in tags, tag
    assert [tags.count("alias:created"), tags.count("alias:moved"), tags.count("access:refused")] == [1, 1, 1]


def check_until_end(client: subprocess.Popen[bytes]) -> None:
    """Check each version that waits for it, until the client has ended."""

    def is_done() -> bool:
        for version in AdapterVersion.objects.filter(status=VersionStatus.CHECKING):
            verification.check(version)
        return client.poll() is not None

    try:
        wait_until(is_done, 240, "MLflow's client ends")
    finally:
        connections.close_all()
