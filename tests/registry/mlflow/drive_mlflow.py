"""A pipeline as MLflow's own client writes it, against the address in MLFLOW_TRACKING_URI; run by MLflow's Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

NAME = "fresh"


def refusal(call: Callable[[], Any]) -> MlflowException:
    try:
        call()
    except MlflowException as error:
        return error
    raise AssertionError("the call was not refused")


def send(folder: str, place: str) -> str:
    uri = f"mlflow-artifacts:/uploads/eu/{place}"
    get_artifact_repository(uri).log_artifacts(folder)
    return uri


def main(first: str, second: str, target: str) -> None:
    client = mlflow.MlflowClient()
    source = send(first, "run-17/adapter")
    assert {file.path for file in get_artifact_repository(source).list_artifacts()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert [file.path for file in get_artifact_repository("mlflow-artifacts:/uploads/eu/run-17").list_artifacts()] == [
        "adapter"
    ]
    missing = refusal(lambda: client.create_registered_model(NAME))
    assert "hub.base_model" in str(missing), missing
    made = client.create_registered_model(NAME, tags={"hub.base_model": "tiny", "team": "law"}, description="d")
    assert (made.name, made.description, made.tags["team"]) == (NAME, "d", "law")
    again = refusal(lambda: client.create_registered_model(NAME))
    assert again.error_code == "RESOURCE_ALREADY_EXISTS"

    # `register_model` meets a model that exists, as in every run of a pipeline but its first, and waits for the check.
    version = mlflow.register_model(source, NAME, tags={"step": "3"})
    assert (version.version, client.get_model_version(NAME, "1").status) == ("1", "READY")
    assert version.tags["step"] == "3"
    assert version.tags["hub.served_name"].startswith("eu.fresh.v1-")
    later = client.create_model_version(NAME, send(second, "run-18"), run_id="abc", description="better")
    assert (later.version, later.run_id, later.description) == ("2", "abc", "better")

    assert [each.name for each in client.search_registered_models("name LIKE 'fre%'")] == [NAME]
    assert [each.name for each in client.search_registered_models("tags.team = 'law'")] == [NAME]
    assert client.search_registered_models("name = 'none'") == []
    assert [each.version for each in client.search_model_versions(f"name = '{NAME}'")] == ["2", "1"]
    assert [each.version for each in client.search_model_versions("run_id = 'abc'")] == ["2"]
    assert [each.version for each in client.search_model_versions("tags.step = '3'")] == ["1"]
    ordered = client.search_model_versions(f"name = '{NAME}'", order_by=["version_number ASC"], max_results=1)
    assert [each.version for each in ordered] == ["1"]
    further = client.search_model_versions(
        f"name = '{NAME}'", order_by=["version_number ASC"], max_results=1, page_token=ordered.token
    )
    assert ([each.version for each in further], further.token) == (["2"], "")
    assert "run_link" in str(refusal(lambda: client.search_model_versions("run_link = 'x'")))

    client.set_registered_model_tag(NAME, "stage", "pilot")
    client.delete_registered_model_tag(NAME, "team")
    client.update_registered_model(NAME, description="changed")
    model = client.get_registered_model(NAME)
    assert (model.description, model.tags["stage"], "team" in model.tags) == ("changed", "pilot", False)
    assert [each.version for each in client.get_latest_versions(NAME)] == ["2"]

    client.set_registered_model_alias(NAME, "champion", "1")
    assert client.get_model_version_by_alias(NAME, "champion").version == "1"
    client.set_registered_model_alias(NAME, "champion", "2")
    assert client.get_registered_model(NAME).aliases == {"champion": "2"}
    assert client.get_model_version(NAME, "2").aliases == ["champion"]
    assert client.get_model_version_download_uri(NAME, "1") == "mlflow-artifacts:/versions/eu.fresh/1"
    path = Path(mlflow.artifacts.download_artifacts("models:/fresh@champion", dst_path=target))
    assert (path / "adapter_model.safetensors").read_bytes() == Path(second, "adapter_model.safetensors").read_bytes()
    client.create_registered_model("other", tags={"hub.base_model": "tiny"})
    copied = client.copy_model_version("models:/fresh/2", "other")
    assert (copied.name, copied.version) == ("other", "1")

    for elsewhere in ("s3://bucket/run", "/var/run", "mlflow-artifacts://192.0.2.1/run", "file:///etc", "runs:/a/b"):
        refused = refusal(lambda elsewhere=elsewhere: client.create_model_version(NAME, elsewhere))
        assert refused.error_code == "INVALID_PARAMETER_VALUE", refused
        assert "nothing is fetched" in str(refused), refused
    nothing = refusal(lambda: client.create_model_version(NAME, "mlflow-artifacts:/uploads/eu/none"))
    assert "Nothing was sent" in str(nothing)
    guarded = refusal(lambda: client.set_registered_model_alias("dora", "compliance", "2"))
    assert guarded.error_code == "PERMISSION_DENIED", guarded
    assert "approved rollout" in str(guarded), guarded
    for call in (
        lambda: client.rename_registered_model(NAME, "new"),
        lambda: client.delete_registered_model(NAME),
        lambda: client.delete_registered_model_alias(NAME, "champion"),
        lambda: client.delete_model_version(NAME, "1"),
        lambda: client.update_model_version(NAME, "1", description="x"),
        lambda: client.set_model_version_tag(NAME, "1", "a", "b"),
        lambda: client.transition_model_version_stage(NAME, "1", "Production"),
    ):
        assert refusal(call).error_code == "NOT_IMPLEMENTED"
    assert refusal(lambda: client.get_registered_model("none")).error_code == "RESOURCE_DOES_NOT_EXIST"
    assert refusal(lambda: client.get_model_version(NAME, "9")).error_code == "RESOURCE_DOES_NOT_EXIST"


if __name__ == "__main__":
    main(*sys.argv[1:])
