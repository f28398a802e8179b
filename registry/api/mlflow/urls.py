"""The paths of MLflow's API below /api/2.0/, as `mlflow.MlflowClient` calls them."""

from typing import Any

from django.urls import path

from registry.api.mlflow.artifacts import ArtifactViewSet
from registry.api.mlflow.model_versions import ModelVersionViewSet
from registry.api.mlflow.registered_models import RegisteredModelViewSet

MODELS: dict[str, Any] = {
    "create": {"post": "create"},
    "get": {"get": "find"},
    "search": {"get": "search"},
    "update": {"patch": "change"},
    "set-tag": {"post": "set_tag"},
    "delete-tag": {"delete": "drop_tag"},
    "alias": {"post": "set_alias", "get": "served", "delete": "remove_alias"},
    "get-latest-versions": {"post": "newest", "get": "newest"},
    "rename": {"post": "rename"},
    "delete": {"delete": "remove"},
}
VERSIONS: dict[str, Any] = {
    "create": {"post": "create"},
    "get": {"get": "find"},
    "search": {"get": "search"},
    "get-download-uri": {"get": "download_uri"},
    "update": {"patch": "change"},
    "set-tag": {"post": "set_tag"},
    "delete-tag": {"delete": "drop_tag"},
    "transition-stage": {"post": "move_stage"},
    "delete": {"delete": "remove"},
}
ARTIFACTS = "mlflow-artifacts/artifacts"

urlpatterns = [
    *(
        path(
            f"mlflow/registered-models/{call}",
            RegisteredModelViewSet.as_view(actions),
            name=f"registered-models-{call}",
        )
        for call, actions in MODELS.items()
    ),
    *(
        path(f"mlflow/model-versions/{call}", ModelVersionViewSet.as_view(actions), name=f"model-versions-{call}")
        for call, actions in VERSIONS.items()
    ),
    path(ARTIFACTS, ArtifactViewSet.as_view({"get": "contents"}), name="artifacts"),
    path(
        f"{ARTIFACTS}/<path:path>",
        ArtifactViewSet.as_view({"get": "fetch", "put": "send", "delete": "forget"}),
        name="artifact",
    ),
]
