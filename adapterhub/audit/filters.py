"""The filter form of the audit explorer: project, tag, actor, object and dates."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Model, QuerySet

from adapterhub.api.pages import offer
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag

CONDITIONS = {
    "project": "project",
    "tag": "tag",
    "who": "actor_name__icontains",
    "object": "object_name__icontains",
    "object_type": "object_type",
    "object_id": "object_id",
    "since": "at__date__gte",
    "until": "at__date__lte",
}


class AuditFilter(forms.Form):
    """A filter of audit events with optional fields. While a field is invalid, its error is shown and none match."""

    project: forms.ModelChoiceField[Model] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", required=False, empty_label="all of mine"
    )
    tag = forms.ChoiceField(label="What", required=False, choices=[("", "everything"), *((tag, tag) for tag in Tag)])
    who = forms.CharField(required=False, max_length=200)
    object = forms.CharField(required=False, max_length=200)
    since = forms.DateField(required=False, widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(required=False, widget=forms.DateInput(attrs={"type": "date"}))
    object_type = forms.CharField(required=False, widget=forms.HiddenInput)
    object_id = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, projects: QuerySet[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.projects = projects
        offer(self, project=projects)

    def events(self) -> QuerySet[AuditEvent]:
        """Return the matching events of the projects, newest first; none while a field is invalid."""
        if not self.is_valid():
            return AuditEvent.objects.none()
        wanted = {CONDITIONS[name]: value for name, value in self.cleaned_data.items() if value}
        return AuditEvent.objects.filter(project__in=self.projects, **wanted).select_related("project")
