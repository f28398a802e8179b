"""Forms of the registry's pages; every form that changes something requires a reason."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.db.models import Case, QuerySet, When

from adapterhub.api.pages import offer, preselect
from adapterhub.core.errors import Invalid
from registry.experiments.rollout_plan import BY_HAND, GUARDRAILS, TEMPLATES
from registry.models import AdapterVersion, Alias, without_bodies

OFFERED = 50


class AtForm(forms.Form):
    """Form for a time, in the installation's time zone unless it names one."""

    at = forms.DateTimeField()


class ReasonForm(forms.Form):
    """A form with one required reason."""

    reason = forms.CharField(max_length=2000, widget=forms.TextInput, help_text="Recorded in the audit trail.")


class GrantForm(forms.Form):
    """Form for the project that a cluster is granted to."""

    project = forms.SlugField(max_length=50)
    reason = forms.CharField(max_length=2000, required=False)


class SteeringForm(ReasonForm):
    """Form for a change of a rollout; it is refused if the rollout has changed since the page was shown."""

    expected_generation = forms.IntegerField(required=False, widget=forms.HiddenInput)


class WeightForm(SteeringForm):
    """The candidate's new share and the reason."""

    weight = forms.FloatField(min_value=0, max_value=100, label="Candidate's share in percent")


def plans() -> list[tuple[str, str]]:
    """Return the choices of a plan: by hand first, then the templates with their weights."""
    shares = {name: [step["weight"] for step in steps if step["weight"]] for name, steps in TEMPLATES.items()}
    weights = {name: ", ".join(f"{share} %" for share in percentages) for name, percentages in shares.items()}
    choices = [(name, f"{name}: {text}, with guardrails") for name, text in weights.items()]
    return [(BY_HAND, "manual: people move the share below"), *choices]


def plan_of(steps: list[dict[str, Any]]) -> str:
    """Return the name of the template that has these steps, or BY_HAND if none has."""
    return next((name for name, template in TEMPLATES.items() if template == steps), BY_HAND)


class PlanForm(SteeringForm):
    """Form for a rollout's plan: a template that runs by itself, or a share that people change."""

    plan = forms.ChoiceField(
        choices=plans,
        required=False,
        help_text="The guardrails of a plan roll back automatically; the rollout's page shows them.",
    )
    weight = forms.FloatField(min_value=1, max_value=100, initial=50, label="Share of the users in percent")

    field_order = ("plan", "weight", "reason")

    def clean(self) -> dict[str, Any]:
        """Return the fields with the `steps` and `guardrails` of the chosen plan in place of its name and weight."""
        fields = super().clean() or self.cleaned_data
        by_hand = [{"weight": fields.pop("weight", None)}]
        steps = TEMPLATES.get(fields.pop("plan", ""), by_hand)
        return {**fields, "steps": steps, "guardrails": [] if steps is by_hand else GUARDRAILS}


class PromoteForm(PlanForm):
    """Form to roll a version out on an alias of the same project and base model."""

    alias = forms.ModelChoiceField(Alias.objects.none())
    draft = forms.BooleanField(
        required=False, label="Keep it as a draft", help_text="It does nothing until somebody starts it."
    )

    def __init__(self, *args: Any, version: AdapterVersion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = Alias.objects.select_related("project").filter(
            project=version.project, cluster__base_model=version.adapter.base_model
        )
        own = Case(When(version__adapter=version.adapter, then=0), default=1)
        offer(self, alias=aliases.exclude(version=version).order_by(own, "name"))
        preselect(self, "alias")
        self.order_fields(["alias", "plan", "weight", "reason", "draft"])


class MoveForm(ReasonForm):
    """Form to move an alias at once, if it still serves the version that the page showed.

    Any servable version may be chosen; the select lists the newest ones and the one named in the query string.
    """

    version = forms.ModelChoiceField(
        AdapterVersion.objects.none(), help_text=f"The newest {OFFERED}. Another one is offered on its own page."
    )
    expected = forms.ModelChoiceField(AdapterVersion.objects.none(), widget=forms.HiddenInput)

    def __init__(self, *args: Any, alias: Alias, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = AdapterVersion.objects.filter(adapter__project=alias.project).select_related("adapter__project")
        servable = without_bodies(versions.ready().trained_on(alias.cluster.base_model), "")
        others = servable.exclude(pk=alias.version_id)
        offer(self, version=others, expected=versions)
        cast(forms.Select, self.fields["version"].widget).choices = self.offered(others)
        self.order_fields(["version", "reason", "expected"])

    def offered(self, servable: QuerySet[AdapterVersion]) -> list[tuple[int | str, str]]:
        """Return the choices of versions: the one that the URL names, and the OFFERED newest."""
        named = str(self.initial.get("version") or "")
        wanted = servable.filter(pk=named) if named.isdecimal() and len(named) < 19 else servable.none()
        rows = {each.pk: str(each) for each in [*wanted, *servable.order_by("-pk")[:OFFERED]]}
        return [("", "---------"), *rows.items()]


def cleaned(form: Any) -> dict[str, Any]:
    """Return the form's validated values. Raises Invalid with the first error and its field."""
    if not form.is_valid():
        field, errors = next(iter(form.errors.items()))
        raise Invalid(f"{form.fields[field].label or field}: {errors[0]}", field=field)
    values: dict[str, Any] = form.cleaned_data
    return values
