"""URLs of the registry's pages."""

from django.urls import path, register_converter

from adapterhub.core.references import ReferenceConverter
from registry.pages import (
    adapters,
    aliases,
    approvals,
    base_models,
    clusters,
    comparison,
    creation,
    evidence,
    playground,
    rollouts,
    settings,
)
from registry.pages.uploads import parts as upload_parts
from registry.pages.uploads import views as uploads

register_converter(ReferenceConverter, "reference")

urlpatterns = [
    path("adapters/", adapters.adapters, name="adapters"),
    path("adapters/new/", creation.new_adapter, name="new-adapter"),
    path("adapters/<reference:slug>/", adapters.adapter, name="adapter"),
    path("adapters/<reference:slug>/edit/", creation.edit_adapter, name="edit-adapter"),
    path("adapters/<reference:slug>/upload/", uploads.upload_version, name="upload-version"),
    path("adapters/<reference:slug>/upload/part/", upload_parts.take_part, name="upload-part"),
    path("adapters/<reference:slug>/upload/check/", uploads.check_upload, name="check-upload"),
    path("adapters/<reference:slug>/v<int:number>/archive/", creation.archive_version, name="archive-version"),
    path("adapters/<reference:slug>/v<int:number>/", adapters.version, name="version"),
    path("adapters/<reference:slug>/v<int:number>/promote/", adapters.promote, name="promote"),
    path("adapters/<reference:slug>/v<int:number>/compare/", comparison.compare_versions, name="compare"),
    path("adapters/<reference:slug>/v<int:number>/compare/ask/", comparison.ask_all, name="ask-all"),
    path("blind-tests/<uuid:pk>/vote/", comparison.vote, name="vote"),
    path("adapters/<reference:slug>/v<int:number>/dossier/", evidence.show_dossier, name="dossier"),
    path("adapters/<reference:slug>/v<int:number>/dossier/freeze/", evidence.freeze_dossier, name="freeze-dossier"),
    path("base-models/", base_models.base_models, name="base-models"),
    path("new-base-model/", base_models.new_base_model, name="new-base-model"),
    path("base-models/<slug:slug>/", base_models.base_model, name="base-model"),
    path("base-models/<slug:slug>/variant/", base_models.declare_variant, name="declare-variant"),
    path("playground/", playground.playground, name="playground"),
    path("settings/", settings.settings, name="settings"),
    path("settings/<slug:slug>/named-versions/", settings.named_versions, name="named-versions"),
    path("responses/", evidence.answers, name="answers"),
    path("aliases/new/", creation.new_alias, name="new-alias"),
    path("aliases/<reference:name>/", aliases.alias, name="alias"),
    path("aliases/<reference:name>/responsibility/", aliases.answer_for, name="responsibility"),
    path("aliases/<reference:name>/move/", aliases.move_alias, name="move-alias"),
    path("aliases/<reference:name>/policy/", creation.alias_policy, name="alias-policy"),
    path("aliases/<reference:name>/default/", aliases.set_default, name="default-alias"),
    path("rollouts/", rollouts.rollouts, name="rollouts"),
    path("rollouts/<uuid:pk>/", rollouts.rollout, name="rollout"),
    path("rollouts/<uuid:pk>/<slug:verb>/", rollouts.move_rollout, name="move-rollout"),
    path("rollouts/<uuid:pk>/approval/ask/", approvals.ask, name="ask-approval"),
    path("approvals/", approvals.inbox, name="approvals"),
    path("approvals/<uuid:pk>/", approvals.approval, name="approval"),
    path("approvals/<uuid:pk>/<slug:verb>/", approvals.decide, name="decide"),
    path("clusters/", clusters.clusters, name="clusters"),
    path("clusters/new/", creation.new_cluster, name="new-cluster"),
    path("clusters/<reference:slug>/", clusters.cluster, name="cluster"),
    path("clusters/<reference:slug>/replicas/", creation.add_replica, name="add-replica"),
    path("clusters/<reference:slug>/grant/", clusters.grant_cluster, name="grant-cluster"),
    path("clusters/<reference:slug>/withdraw/", clusters.withdraw_grant, name="withdraw-grant"),
    path("clusters/<reference:slug>/<slug:verb>/", clusters.steer_cluster, name="steer-cluster"),
    path("replicas/<int:pk>/<slug:verb>/", clusters.steer_replica, name="steer-replica"),
]
