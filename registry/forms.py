"""Forms of the registry's pages; each verb asks for its reason."""

from __future__ import annotations

from typing import Any

from django import forms

from registry.models import AdapterVersion, Alias


class AtForm(forms.Form):
    """A time, in the installation's zone where it names none."""

    at = forms.DateTimeField()


class ReasonForm(forms.Form):
    reason = forms.CharField(max_length=2000, widget=forms.TextInput, help_text="Kept in the audit trail.")


class SteeringForm(ReasonForm):
    """A verb on what the page showed: refused when somebody has changed the rollout since."""

    expected_generation = forms.IntegerField(required=False, widget=forms.HiddenInput)


class WeightForm(SteeringForm):
    weight = forms.FloatField(min_value=0, max_value=100, label="Candidate's share in percent")


class PromoteForm(ReasonForm):
    """Roll a version out on an alias: by a share of the users first, or to everybody."""

    alias = forms.ModelChoiceField(Alias.objects.none())
    weight = forms.FloatField(min_value=1, max_value=100, initial=50, label="Share of the users in percent")

    def __init__(self, *args: Any, version: AdapterVersion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = Alias.objects.filter(project=version.project, cluster__base_model=version.adapter.base_model)
        self.fields["alias"].queryset = aliases.exclude(version=version)
        self.order_fields(["alias", "weight", "reason"])


class MoveForm(ReasonForm):
    """Serve another version at once, if the alias still serves the one that the page showed."""

    version = forms.ModelChoiceField(AdapterVersion.objects.none())
    expected = forms.ModelChoiceField(AdapterVersion.objects.none(), widget=forms.HiddenInput)

    def __init__(self, *args: Any, alias: Alias, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = AdapterVersion.objects.filter(adapter__project=alias.project).select_related("adapter")
        servable = versions.ready().trained_on(alias.cluster.base_model)
        self.fields["version"].queryset = servable.exclude(pk=alias.version_id)
        self.fields["expected"].queryset = versions
        self.order_fields(["version", "reason", "expected"])
