"""Pages of the registry."""

from django.urls import path

from registry import (
    approval_pages,
    cluster_pages,
    compare_pages,
    evidence_pages,
    playground_pages,
    settings_pages,
    views,
)

urlpatterns = [
    path("adapters/", views.adapters, name="adapters"),
    path("adapters/<slug:slug>/", views.adapter, name="adapter"),
    path("adapters/<slug:slug>/v<int:number>/", views.version, name="version"),
    path("adapters/<slug:slug>/v<int:number>/promote/", views.promote, name="promote"),
    path("adapters/<slug:slug>/v<int:number>/compare/", compare_pages.compare_versions, name="compare"),
    path("adapters/<slug:slug>/v<int:number>/compare/ask/", compare_pages.ask_all, name="ask-all"),
    path("blind-tests/<uuid:pk>/vote/", compare_pages.vote, name="vote"),
    path("adapters/<slug:slug>/v<int:number>/dossier/", evidence_pages.show_dossier, name="dossier"),
    path("adapters/<slug:slug>/v<int:number>/dossier/freeze/", evidence_pages.freeze_dossier, name="freeze-dossier"),
    path("playground/", playground_pages.playground, name="playground"),
    path("settings/", settings_pages.settings, name="settings"),
    path("responses/", evidence_pages.answers, name="answers"),
    path("aliases/<slug:name>/", views.alias, name="alias"),
    path("aliases/<slug:name>/move/", views.move_alias, name="move-alias"),
    path("rollouts/", views.rollouts, name="rollouts"),
    path("rollouts/<uuid:pk>/", views.rollout, name="rollout"),
    path("rollouts/<uuid:pk>/<slug:verb>/", views.move_rollout, name="move-rollout"),
    path("rollouts/<uuid:pk>/approval/ask/", approval_pages.ask, name="ask-approval"),
    path("approvals/", approval_pages.inbox, name="approvals"),
    path("approvals/<uuid:pk>/", approval_pages.approval, name="approval"),
    path("approvals/<uuid:pk>/<slug:verb>/", approval_pages.decide, name="decide"),
    path("clusters/", cluster_pages.clusters, name="clusters"),
    path("clusters/<slug:slug>/", cluster_pages.cluster, name="cluster"),
]
