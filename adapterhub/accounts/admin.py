"""Admin pages of users, projects and tokens, whose changes are recorded in the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import UserAdmin
from django.db.models import DateTimeField
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse

from adapterhub.accounts import memberships
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.api.admin_base import AnyAdmin, AnyInline, ReadOnlyAdmin
from adapterhub.api.permissions import actor_of
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import NotAllowed

# Only the type stubs have this class take a parameter.
if TYPE_CHECKING:
    AccountAdmin = UserAdmin[User]
    AnyFormSet = BaseInlineFormSet[Any, Any, Any]
else:
    AccountAdmin, AnyFormSet = UserAdmin, BaseInlineFormSet

admin.site.site_header = admin.site.site_title = "AdapterHub"


@admin.register(User)
class RecordedUserAdmin(AccountAdmin):
    """The admin of accounts. Each change writes its audit event in its transaction; accounts cannot be deleted."""

    # Times that the product sets. The widget with two lists, Django's default here, has labels that no reader reads.
    readonly_fields = ("last_login", "date_joined")
    filter_horizontal = ()

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Save the user and record the event that it was created or changed, with its rights and the changed fields."""
        super().save_model(request, obj, form, change)
        tag = Tag.USER_CHANGED if change else Tag.USER_CREATED
        AuditEvent.record(tag, obj, by=actor_of(request), project=None, after=rights_of(obj, form.changed_data))

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Change a user's password. Raises NotAllowed for a service account, which cannot have one."""
        if User.objects.filter(pk=unquote(id), is_service=True).exists():
            raise NotAllowed("A service account has no password. Create a token for it on the Tokens page.")
        return super().user_change_password(request, id, form_url)

    def log_change(self, request: HttpRequest, obj: User, message: Any) -> Any:
        """Return Django's log entry; also record an audit event if the change is that of the password."""
        # A password is changed by a view that does not call save_model but only logs.
        if any(part.get("changed", {}).get("fields") == ["password"] for part in message if isinstance(part, dict)):
            AuditEvent.record(
                Tag.USER_CHANGED, obj, by=actor_of(request), project=None, after={"changed": ["password"]}
            )
        return super().log_change(request, obj, message)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: users are not deleted, as the audit trail refers to them."""
        return False


def rights_of(user: User, changed: list[str]) -> dict[str, Any]:
    """Return is_active, is_staff and is_superuser of an account, and the names of its changed fields as `changed`.

    They are for the audit trail, which never gets a password.
    """
    return {
        "is_active": user.is_active,
        "is_staff": user.is_staff,
        "is_superuser": user.is_superuser,
        "changed": sorted(changed),
    }


class LabelledMemberships(AnyFormSet):
    """The memberships in a project's form; the checkbox that removes one has a label for screen readers."""

    def add_fields(self, form: forms.Form, index: int | None) -> None:
        """Add the form set's own fields to a form, and a label to the checkbox that removes a role."""
        super().add_fields(form, index)
        if "DELETE" in form.fields:
            form.fields["DELETE"].widget.attrs["aria-label"] = "Remove this role"


class MembershipInline(AnyInline):
    """The memberships of a project. Roles are added and removed, not edited: another role is another membership."""

    model = Membership
    formset = LabelledMemberships
    extra = 0

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a membership is not edited; a role is granted or revoked."""
        return False


@admin.register(Project)
class ProjectAdmin(AnyAdmin):
    """The admin of projects and their memberships; each grant and each withdrawal writes its audit event."""

    list_display = ["slug", "name", "archived_at"]
    readonly_fields = ["named_versions", "requests_per_s", "tokens_per_min"]
    # One field with one label, where Django's default has two without.
    formfield_overrides = {DateTimeField: {"form_class": forms.DateTimeField, "widget": forms.DateTimeInput}}
    inlines = [MembershipInline]

    def save_model(self, request: HttpRequest, obj: Project, form: Any, change: bool) -> None:
        """Save the project and record the changed fields."""
        super().save_model(request, obj, form, change)
        tag = Tag.PROJECT_CHANGED if change else Tag.PROJECT_CREATED
        after = {name: str(getattr(obj, name)) for name in form.changed_data}
        AuditEvent.record(tag, obj, by=actor_of(request), project=obj, after=after)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Grant and revoke the roles that the form adds and deletes, with their audit events."""
        by = actor_of(request)
        edited_memberships: list[Membership] = formset.save(commit=False)
        for membership in formset.deleted_objects:
            memberships.revoke(membership, by=by)
        for membership in edited_memberships:
            memberships.grant(membership.project, membership.user, membership.role, by=by)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a project is archived, not deleted."""
        return False


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Read-only page of the tokens, without their hashes."""

    list_display = ["id", "name", "project", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"]
    exclude = ["secret_hash"]
