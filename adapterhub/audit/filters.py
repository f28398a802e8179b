"""The filter form of the audit explorer: project, tag, actor, object and dates."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Model, QuerySet

from adapterhub.api.pages import offer
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.sentences import phrase
from adapterhub.audit.tags import READS, Tag
from adapterhub.core.forms import Form

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


def kinds() -> list[tuple[str, str]]:
    """Return (tag, words) for every tag, sorted by the words, as the choices of a field."""
    return sorted(((str(tag), in_words(tag)) for tag in Tag), key=lambda choice: choice[1])


def in_words(tag: str) -> str:
    """Return in words what events with this tag did, without their object."""
    return phrase(tag).replace(" {}", "").replace("{}", "").strip(" :")


class AuditFilter(Form):
    """A form that filters audit events; every field is optional. While a field is invalid, no event matches."""

    project: forms.ModelChoiceField[Model] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", required=False, empty_label="all of mine"
    )
    tag = forms.ChoiceField(label="What", required=False, choices=lambda: [("", "everything"), *kinds()])
    who = forms.CharField(required=False, max_length=200, help_text="A user name, or a token's.")
    object = forms.CharField(required=False, max_length=200, help_text="Its name, or a part of it.")
    since = forms.DateField(required=False, widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(required=False, widget=forms.DateInput(attrs={"type": "date"}))
    reads = forms.BooleanField(required=False, label="Reads too", help_text="Who looked at what.")
    object_type = forms.CharField(required=False, widget=forms.HiddenInput)
    object_id = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, projects: QuerySet[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.projects = projects
        offer(self, project=projects)

    def events(self) -> QuerySet[AuditEvent]:
        """Return the matching events of the projects, newest first; none while a field is invalid.

        Events that record reads are left out, unless `reads` is checked or `tag` is one of theirs.
        """
        if not self.is_valid():
            return AuditEvent.objects.none()
        wanted = {CONDITIONS[name]: self.cleaned_data[name] for name in CONDITIONS if self.cleaned_data[name]}
        events = AuditEvent.objects.filter(project__in=self.projects, **wanted).select_related("project")
        return events if self.cleaned_data["reads"] or wanted.get("tag") in READS else events.without_reads()
