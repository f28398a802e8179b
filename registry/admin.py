"""Read-only admin pages of the registry."""

from django.contrib import admin

from adapterhub.api.admin_base import ReadOnlyAdmin
from registry import models


@admin.register(models.AdapterVersion)
class AdapterVersionAdmin(ReadOnlyAdmin):
    """Read-only page of the versions."""

    list_display = ["served_name", "status", "method", "parameters", "created_at"]
    list_filter = ["status", "method"]


@admin.register(models.Alias)
class AliasAdmin(ReadOnlyAdmin):
    """Read-only page of the aliases."""

    list_display = ["name", "project", "version", "cluster", "generation"]


@admin.register(models.Rollout)
class RolloutAdmin(ReadOnlyAdmin):
    """Read-only page of the rollouts."""

    list_display = ["alias", "stable", "candidate", "status", "weight", "created_at"]
    list_filter = ["status"]


@admin.register(models.Response)
class ResponseAdmin(ReadOnlyAdmin):
    """Read-only page of the answers."""

    list_display = ["id", "version", "arm", "status", "at", "total_ms"]


for model in (
    models.BaseModel,
    models.Adapter,
    models.AliasMove,
    models.Approval,
    models.BlindTest,
    models.BlindVote,
    models.Signature,
    models.Cluster,
    models.Dossier,
    models.RolloutDecision,
    models.Replica,
):
    admin.site.register(model, ReadOnlyAdmin)
