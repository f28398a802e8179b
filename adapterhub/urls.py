"""The URL routes of pages, REST API and admin."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.routers import SimpleRouter

from adapterhub.accounts.api import ProjectsViewSet, ServiceAccountViewSet, TokenViewSet
from adapterhub.accounts.invitations import pages as invitation_pages
from adapterhub.accounts.invitations.api import InvitationViewSet
from adapterhub.accounts.pages import first_run as first_run_pages
from adapterhub.accounts.pages import people as people_pages
from adapterhub.accounts.pages import projects as project_pages
from adapterhub.accounts.pages import roles as role_pages
from adapterhub.accounts.pages import service_accounts as service_account_pages
from adapterhub.accounts.pages import tokens as token_pages
from adapterhub.accounts.pages.second_factor import manage, second_step
from adapterhub.accounts.pages.sessions import sessions
from adapterhub.accounts.pages.sign_in import admin_sign_in, refused, sign_in
from adapterhub.api.theme import choose
from adapterhub.api.views import healthz
from adapterhub.audit import pages as audit
from adapterhub.audit.api import AuditViewSet
from adapterhub.core.references import REFERENCE
from adapterhub.webhooks import pages as webhook_pages
from adapterhub.webhooks.api import DeliveryViewSet, WebhookViewSet
from registry.api import (
    adapters,
    alarms,
    aliases,
    approvals,
    base_models,
    blind_tests,
    clusters,
    responses,
    rollouts,
    versions,
)
from training.api import compressions, estimates, evaluations, plans
from training.api import views as training
from training.api.prometheus_metrics import MetricsViewSet
from training.api.usage import UsageViewSet

router = SimpleRouter()
router.register("projects", ProjectsViewSet, "project")
router.register("tokens", TokenViewSet, "token")
router.register("invitations", InvitationViewSet, "invitation")
router.register("service-accounts", ServiceAccountViewSet, "service-account")
router.register("audit/events", AuditViewSet, "audit-event")
router.register("webhooks", WebhookViewSet, "webhook")
router.register("deliveries", DeliveryViewSet, "delivery")
router.register("base-models", base_models.BaseModelViewSet, "base-model")
router.register("adapters", adapters.AdapterViewSet, "adapter")
router.register(rf"adapters/(?P<slug>{REFERENCE})/versions", versions.VersionViewSet, "version")
router.register("clusters", clusters.ClusterViewSet, "cluster")
router.register("replicas", clusters.ReplicaViewSet, "replica")
router.register("alarms", alarms.AlarmViewSet, "alarm")
router.register("aliases", aliases.AliasViewSet, "alias")
router.register("rollouts", rollouts.RolloutViewSet, "rollout")
router.register("approvals", approvals.ApprovalViewSet, "approval")
router.register("blind-tests", blind_tests.BlindTestViewSet, "blind-test")
router.register("feedback", rollouts.FeedbackViewSet, "feedback")
router.register("responses", responses.ResponseViewSet, "response")
router.register("datasets", training.DatasetViewSet, "dataset")
router.register("erasures", training.ErasureViewSet, "erasure")
router.register("rank-analyses", training.RankAnalysisViewSet, "rank-analysis")
router.register("training-runs", training.TrainingRunViewSet, "training-run")
router.register("estimates", estimates.EstimateViewSet, "estimate")
router.register("advisor", estimates.AdviceViewSet, "advisor")
router.register("plans", plans.PlanViewSet, "plan")
router.register("evaluations", evaluations.EvaluationViewSet, "evaluation")
router.register("compressions", compressions.CompressionViewSet, "compression")
router.register(
    rf"adapters/(?P<slug>{REFERENCE})/versions", compressions.VersionCompressionViewSet, "version-compression"
)

handler404 = "adapterhub.api.problems.not_found"
handler500 = "adapterhub.api.problems.server_error"

api: list[URLPattern | URLResolver] = [
    path("", include(router.urls)),
    path("audit/verify/", AuditViewSet.as_view({"get": "verify"}), name="audit-verify"),
    path("metrics/", MetricsViewSet.as_view({"get": "metrics"}), name="metrics"),
    path("usage/", UsageViewSet.as_view({"get": "list"}), name="usage-list"),
    path("usage/csv/", UsageViewSet.as_view({"get": "export"}), name="usage-csv"),
    path("audit/export/", AuditViewSet.as_view({"get": "export"}), name="audit-export"),
]

urlpatterns = [
    path("healthz", healthz),
    path("api/v1/", include((api, "api"))),
    path("api/2.0/", include(("registry.api.mlflow.urls", "mlflow"))),
    path("api/schema/", SpectacularAPIView.as_view(permission_classes=[AllowAny]), name="schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(permission_classes=[AllowAny]), name="docs"),
    path("", include("registry.urls")),
    path("", include("training.urls")),
    path("audit/", audit.explorer, name="audit"),
    path("audit/roles/", role_pages.roles, name="audit-roles"),
    path("audit/<int:pk>/", audit.event, name="audit-event"),
    path("new-project/", project_pages.new_project, name="new-project"),
    path("projects/<slug:slug>/", project_pages.project, name="project"),
    path("projects/<slug:slug>/limit/", project_pages.limit_project, name="limit-project"),
    path("projects/<slug:slug>/roles/revoke/", project_pages.revoke_role, name="revoke-role"),
    path("tokens/", token_pages.tokens, name="tokens"),
    path("tokens/accounts/", service_account_pages.accounts, name="service-accounts"),
    path(
        "tokens/accounts/<slug:project>/<path:name>/hand-over/",
        service_account_pages.hand_over,
        name="hand-over-service-account",
    ),
    path(
        "tokens/accounts/<slug:project>/<path:name>/close/", service_account_pages.close, name="close-service-account"
    ),
    path("tokens/<slug:pk>/", token_pages.token, name="token"),
    path("tokens/<slug:pk>/limit/", token_pages.limit, name="limit-token"),
    path("tokens/<slug:pk>/revoke/", token_pages.revoke, name="revoke-token"),
    path("webhooks/", webhook_pages.webhooks, name="webhooks"),
    path("webhooks/<uuid:pk>/revoke/", webhook_pages.revoke, name="revoke-webhook"),
    path("deliveries/", webhook_pages.deliveries, name="deliveries"),
    path("deliveries/<int:pk>/redeliver/", webhook_pages.redeliver, name="redeliver"),
    path("sessions/", sessions, name="sessions"),
    path("invitations/", invitation_pages.invitations, name="invitations"),
    path("invitations/<uuid:pk>/revoke/", invitation_pages.revoke, name="revoke-invitation"),
    path("invitations/<uuid:pk>/<slug:verb>/", invitation_pages.answer, name="answer-invitation"),
    path("theme/", choose, name="theme"),
    path("setup/", first_run_pages.first_administrator, name="first-administrator"),
    path("setup/<str:secret>/", first_run_pages.open_link, name="setup"),
    path("people/", people_pages.accounts, name="people"),
    path("people/<int:pk>/<slug:verb>/", people_pages.move_account, name="move-account"),
    path("welcome/", people_pages.choose_password, name="choose-password"),
    path("welcome/<int:pk>/<slug:token>/", people_pages.welcome, name="welcome"),
    path("login/", sign_in, name="login"),
    path("login/code/", second_step, name="second-step"),
    path("second-factor/", manage, name="second-factor"),
    path("accounts/", include("allauth.socialaccount.providers.openid_connect.urls")),
    path("accounts/cancelled/", refused, name="socialaccount_login_cancelled"),
    path("accounts/error/", refused, name="socialaccount_login_error"),
    path("accounts/taken/", refused, name="socialaccount_signup"),
    path("accounts/login/", sign_in, name="account_login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("admin/login/", admin_sign_in, name="admin-login"),
    path("admin/", admin.site.urls),
]
