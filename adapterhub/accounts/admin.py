from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import UserAdmin
from django.db import models
from django.http import HttpRequest, HttpResponse

from adapterhub.accounts import memberships
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.api.admin_base import ReadOnlyAdmin
from adapterhub.api.permissions import actor_of
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import NotAllowed

admin.site.site_header = admin.site.site_title = "AdapterHub"


@admin.register(User)
class RecordedUserAdmin(UserAdmin):
    """Accounts. Each change leaves its event, written in the transaction of the change; nobody is deleted."""

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        tag = Tag.USER_CHANGED if change else Tag.USER_CREATED
        AuditEvent.record(tag, obj, by=actor_of(request), project=None, after=rights_of(obj, form.changed_data))

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """A service account never signs in: the database refuses it a password."""
        if User.objects.filter(pk=unquote(id), is_service=True).exists():
            raise NotAllowed("A service account has no password: make it a token on the page of tokens.")
        return super().user_change_password(request, id, form_url)

    def log_change(self, request: HttpRequest, obj: User, message: Any) -> Any:
        # A new password is set by a view of its own, which only logs.
        if any(part.get("changed", {}).get("fields") == ["password"] for part in message if isinstance(part, dict)):
            AuditEvent.record(
                Tag.USER_CHANGED, obj, by=actor_of(request), project=None, after={"changed": ["password"]}
            )
        return super().log_change(request, obj, message)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def rights_of(user: User, changed: list[str]) -> dict[str, Any]:
    """What an auditor asks about an account; names of changed fields, never a password."""
    return {"is_active": user.is_active, "is_staff": user.is_staff, "is_superuser": user.is_superuser,
            "changed": sorted(changed)}  # fmt: skip


class MembershipInline(admin.TabularInline):
    """Roles are given and taken; a role that is another one is another membership."""

    model = Membership
    extra = 0

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    """Projects and who has which role in them, each grant and each withdrawal with its event."""

    list_display = ["slug", "name", "archived_at"]
    inlines = [MembershipInline]

    def save_model(self, request: HttpRequest, obj: Project, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        tag = Tag.PROJECT_CHANGED if change else Tag.PROJECT_CREATED
        after = {name: str(getattr(obj, name)) for name in form.changed_data}
        AuditEvent.record(tag, obj, by=actor_of(request), project=obj, after=after)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        by = actor_of(request)
        given: list[models.Model] = formset.save(commit=False)
        for membership in formset.deleted_objects:
            memberships.revoke(membership, by=by)
        for membership in given:
            memberships.grant(membership.project, membership.user, membership.role, by=by)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "project", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"]
    exclude = ["secret_hash"]
