"""Admin page of the audit trail."""

from django.contrib import admin

from adapterhub.api.admin_base import ReadOnlyAdmin
from adapterhub.audit.models import AuditEvent


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """Read-only page of the audit events."""

    list_display = ["at", "project", "sequence", "tag", "object_name", "actor_name", "reason"]
    list_filter = ["project", "tag"]
    search_fields = ["object_name", "actor_name", "reason"]
