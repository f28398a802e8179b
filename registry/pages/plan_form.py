"""The form of a rollout's plan: by hand, a template, or own steps and guardrails, previewed before it is started."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.db.models import Case, When

from adapterhub.api.pages import CHOOSE, offer, preselect
from adapterhub.core.errors import Invalid
from adapterhub.core.forms import Form
from registry.base_models.variants import of_variants
from registry.experiments.guardrails import Kind
from registry.experiments.metrics import METRICS
from registry.experiments.rollout_plan import BY_HAND, GUARDRAILS, TEMPLATES, check, check_answers, guardrail
from registry.models import AdapterVersion, Alias
from registry.pages.forms import SteeringForm
from registry.pages.rollout_figures import promise

OWN = "own"
MINUTE, MOST_ROWS, SPARE_ROWS, MORE_ROWS = 60, 20, 2, 2
PATTERNS = {"refusal_rate": "refusal", "format_failure_rate": "format"}
LEVELS = [("", "mean or rate"), ("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")]
KINDS = [
    (Kind.GUARDRAIL.value, "guardrail: bad rolls back"),
    (Kind.SIGNAL.value, "signal: bad pauses"),
    (Kind.GOAL.value, "goal: holds the promotion"),
]


class RowForm(Form):
    """A row of a table of a plan; `described_by` is the id of the sentence that explains the table's columns."""

    described_by = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            field.widget.attrs["aria-describedby"] = self.described_by


class StepForm(RowForm):
    """One step of a plan that the person writes."""

    described_by = "steps-help"

    weight = forms.FloatField(min_value=0, max_value=100, label="Share, percent of the users")
    hold = forms.FloatField(min_value=0, required=False, label="Hold, minutes")
    min_samples = forms.IntegerField(min_value=0, required=False, label="Users in each arm")
    shadow = forms.FloatField(min_value=0, max_value=100, required=False, label="Shadow, percent of the answers")
    approval = forms.BooleanField(required=False, label="Then an approval")

    def as_step(self) -> dict[str, Any]:
        """Return the step as rollouts store it: {weight, hold_s, min_samples}, with `shadow` and `approval` if set.

        The minutes of the field `hold` become seconds; an empty field is 0.
        """
        fields = self.cleaned_data
        step = {"weight": fields["weight"], "hold_s": round((fields["hold"] or 0) * MINUTE)}
        step["min_samples"] = fields["min_samples"] or 0
        shadow = {"shadow": fields["shadow"]} if fields["shadow"] else {}
        return {**step, **shadow, **({"approval": True} if fields["approval"] else {})}


def metric_choices() -> list[tuple[str, str]]:
    """Return the metrics with their units as choices, without the judge's score, whose instruction only REST takes."""
    named = [(key, f"{metric.label} ({metric.unit})") for key, metric in METRICS.items() if key != "judge_score"]
    return [("", CHOOSE), *named]


class GuardrailForm(RowForm):
    """One guardrail, signal or goal of a plan that the person writes."""

    described_by = "rails-help"

    metric = forms.ChoiceField(choices=metric_choices)
    margin = forms.FloatField(min_value=0, label="Worse by at most, in the metric's unit")
    level = forms.ChoiceField(choices=LEVELS, required=False, label="Of its")
    kind = forms.ChoiceField(choices=KINDS, required=False, initial=KINDS[0][0], label="What it does")

    def clean(self) -> dict[str, Any]:
        """Check that the fields make a guardrail that can be judged, and return them. Raises ValidationError."""
        fields = super().clean() or self.cleaned_data
        if {"metric", "margin"} <= fields.keys():
            try:
                guardrail(self.as_guardrail(fields))
            except Invalid as error:
                raise forms.ValidationError(error.detail) from None
        return fields

    def as_guardrail(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the guardrail in the form that rollouts store: {metric, margin, kind}, with `level` if one was chosen.

        `fields` are the form's validated values.
        """
        level = {"level": float(fields["level"])} if fields["level"] else {}
        return {
            "metric": fields["metric"],
            "margin": fields["margin"],
            "kind": fields["kind"] or Kind.GUARDRAIL.value,
            **level,
        }


class Rows(forms.BaseFormSet):  # type: ignore[type-arg]  # Django cannot subscript it
    """A table with one form per row; empty rows are left out, even if they had values before."""

    def initial_form_count(self) -> int:
        """Return the number of rows that must be filled: 0 for submitted data."""
        return 0 if self.is_bound else super().initial_form_count()


def rows_of(form: type[forms.Form]) -> Any:
    """Return the class of a table with this form in each row."""
    return forms.formset_factory(form, Rows, extra=SPARE_ROWS, absolute_max=MOST_ROWS + MORE_ROWS, max_num=MOST_ROWS)


def choices() -> list[tuple[str, str]]:
    """Return the choices of a plan: by hand first, then the templates with their weights, then own steps."""
    shares = {name: [step["weight"] for step in steps if step["weight"]] for name, steps in TEMPLATES.items()}
    weights = {name: ", ".join(f"{share} %" for share in percentages) for name, percentages in shares.items()}
    templates = [(name, f"{name}: {text}, with guardrails") for name, text in weights.items()]
    return [(BY_HAND, "manual: people move the share"), *templates, (OWN, "own steps and guardrails")]


def plan_of(steps: list[dict[str, Any]], guardrails: list[dict[str, Any]]) -> str:
    """Return the name of the template with this plan, BY_HAND for one share that people move, or OWN."""
    if not guardrails and len(steps) == 1 and set(steps[0]) <= {"weight"}:
        return BY_HAND
    same = (name for name, template in TEMPLATES.items() if template == steps and guardrails == GUARDRAILS)
    return next(same, OWN)


def rows_from(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return stored steps as initial values of the form's rows, with the time to hold in minutes."""
    return [{**step, "hold": step.get("hold_s", 0) / MINUTE} for step in steps]


class PlanForm(SteeringForm):
    """Form for a rollout's plan; `steps`, `guardrails` and `checks` are those of a draft that is edited."""

    plan = forms.ChoiceField(choices=choices, required=False, initial=BY_HAND, widget=forms.RadioSelect)
    weight = forms.FloatField(
        min_value=1,
        max_value=100,
        initial=50,
        required=False,
        label="Share of the users in percent",
        help_text="Who get the candidate, until somebody moves it.",
    )
    refusal = forms.CharField(
        max_length=500, required=False, label="A refusal contains", help_text="Regular expression, for refusals."
    )
    format = forms.CharField(
        max_length=500, required=False, label="A correct answer contains", help_text="Regular expression, for formats."
    )

    def __init__(
        self,
        data: Any = None,
        *args: Any,
        steps: list[dict[str, Any]] | None = None,
        guardrails: list[dict[str, Any]] | None = None,
        checks: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        data = with_more_rows(data) if data and "more" in data else data
        super().__init__(data, *args, **kwargs)
        self.checks = checks or {}
        self.steps = rows_of(StepForm)(data, prefix="steps", initial=rows_from(steps or []))
        self.rails = rows_of(GuardrailForm)(data, prefix="rails", initial=guardrails or [])

    def clean(self) -> dict[str, Any]:
        """Return the fields with the `steps`, `guardrails` and `checks` of the chosen plan.

        A template brings GUARDRAILS; by hand there is one step with the given share and no guardrail, and the share is
        required. Errors are added to the form.
        """
        fields = super().clean() or self.cleaned_data
        plan, weight = fields.pop("plan", "") or BY_HAND, fields.pop("weight", None)
        patterns = {name: fields.pop(name, "") for name in ("refusal", "format")}
        fields |= {"steps": TEMPLATES.get(plan, [{"weight": weight}]), "guardrails": [], "checks": self.checks}
        if plan == OWN:
            return fields | self.own_plan(patterns)
        if plan == BY_HAND and weight is None and "weight" not in self.errors:
            self.add_error("weight", "Give the share that the candidate starts with.")
        return fields | ({} if plan == BY_HAND else {"guardrails": GUARDRAILS})

    def own_plan(self, patterns: dict[str, str]) -> dict[str, Any]:
        """Return the steps, guardrails and checks from the tables' rows; errors in them are added to the field `plan`.

        Empty if there are errors. `patterns` are the regular expressions of the form.
        """
        rows = {"steps": self.steps, "rails": self.rails}
        for name, table in rows.items():
            if not table.is_valid():
                errors = [error for row in table.errors for each in row.values() for error in each]
                label = "steps" if name == "steps" else "guardrails"
                self.add_error("plan", f"Mend the {label}: {' '.join(errors) or 'the table is not complete.'}")
        if "plan" in self.errors:
            return {}
        steps = [row.as_step() for row in self.steps if row.has_changed()]
        guardrails = [row.as_guardrail(row.cleaned_data) for row in self.rails if row.has_changed()]
        checks = {**self.checks, **patterns}
        plan = {
            "steps": steps,
            "guardrails": guardrails,
            "checks": {name: part for name, part in checks.items() if part},
        }
        self.require_plan(plan)
        return plan

    def require_plan(self, plan: dict[str, Any]) -> None:
        """Add an error to the form for each thing that keeps the plan from being carried out."""
        missing = [PATTERNS[each["metric"]] for each in plan["guardrails"] if each["metric"] in PATTERNS]
        for name in missing:
            if name not in plan["checks"]:
                self.add_error(name, "The guardrail on it needs a regular expression.")
        try:
            check(plan["steps"], plan["guardrails"])
            check_answers(plan["checks"], plan["guardrails"])
        except Invalid as error:
            self.add_error("plan", error.detail)

    def offers(self) -> list[dict[str, Any]]:
        """Return the choices of a plan, each with its radio button and preview, for the template."""
        return [
            {
                "radio": widget.tag(),
                "id": widget.id_for_label,
                "label": label,
                "is_by_hand": name == BY_HAND,
                "is_own": name == OWN,
                "preview": preview(TEMPLATES[name], GUARDRAILS) if name in TEMPLATES else None,
            }
            for widget, (name, label) in zip(self["plan"].subwidgets, choices(), strict=True)
        ]


def with_more_rows(data: Any) -> Any:
    """Return a copy of the submitted data with MORE_ROWS more empty rows in both tables, MOST_ROWS in each at most."""
    data = data.copy()
    for prefix in ("steps", "rails"):
        total = data.get(f"{prefix}-TOTAL_FORMS", "0")
        data[f"{prefix}-TOTAL_FORMS"] = str(min(MOST_ROWS, (int(total) if total.isdecimal() else 0) + MORE_ROWS))
    return data


def preview(steps: list[dict[str, Any]], guardrails: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a plan will do: its steps as `plan`, its guardrails in words as `rails`, `seconds` and `users`.

    `seconds` is the least time of all steps together, `users` the most that a step needs in each arm.
    """
    return {
        "plan": [*steps, {"is_promotion": True}] if guardrails else steps,
        "rails": [promise(guardrail(raw)) for raw in guardrails],
        "seconds": sum(step.get("hold_s", 0) for step in steps),
        "users": max((step.get("min_samples", 0) for step in steps), default=0),
    }


class PromoteForm(PlanForm):
    """Form for a rollout of a version on an alias of the same project and base model."""

    alias = forms.ModelChoiceField(Alias.objects.none())
    draft = forms.BooleanField(
        required=False, label="Keep it as a draft", help_text="It does nothing until somebody starts it."
    )

    def __init__(self, *args: Any, version: AdapterVersion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = Alias.objects.select_related("project").filter(
            of_variants("cluster__base_model", version.adapter.base_model), project=version.project
        )
        own = Case(When(version__adapter=version.adapter, then=0), default=1)
        offer(self, alias=aliases.exclude(version=version).order_by(own, "name"))
        preselect(self, "alias")
        # The page lists them elsewhere, too: they are read once.
        field = cast("forms.ModelChoiceField[Alias]", self.fields["alias"])
        field.choices = [("", field.empty_label or ""), *((row.pk, str(row)) for row in field.queryset or ())]
