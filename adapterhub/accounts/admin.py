from django.contrib import admin
from django.contrib.auth.admin import UserAdmin

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.api.admin_base import ReadOnlyAdmin

admin.site.site_header = admin.site.site_title = "AdapterHub"
admin.site.register(User, UserAdmin)


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    list_display = ["slug", "name", "archived_at"]
    inlines = [MembershipInline]


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "project", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at"]
    exclude = ["secret_hash"]
