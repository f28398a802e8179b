"""Forms of the registry's pages; a form that changes something in production requires a reason."""

from __future__ import annotations

import re
from typing import Any, cast

from django import forms
from django.db.models import QuerySet

from adapterhub.api.pages import CHOOSE, offer
from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from adapterhub.core.forms import Form
from registry.models import AdapterVersion, Alias, Cluster, without_bodies
from serving_client.vllm_slots import VLLM_RANKS

OFFERED = 50
BETWEEN = re.compile(r"^---[ \t]*$", re.MULTILINE)


class AtForm(Form):
    """Form for a time, in the installation's time zone unless the time names one."""

    at = forms.DateTimeField()


class ReasonForm(Form):
    """A form with one required reason."""

    reason = forms.CharField(max_length=2000, widget=forms.TextInput, help_text="Recorded in the audit trail.")


class PromptListField(forms.CharField):
    """A form field of at most `most` prompts, each of at most `longest` characters and any number of lines."""

    def __init__(self, *, most: int, longest: int = 8000, rows: int = 6, **kwargs: Any) -> None:
        # A prompt's own spaces are part of it.
        super().__init__(
            strip=False,
            max_length=most * (longest + 5),
            widget=forms.Textarea(attrs={"rows": rows}),
            help_text=f"Up to {most}. A line of --- stands between two prompts, so that each may have many lines.",
            **kwargs,
        )
        self.most, self.longest = most, longest

    def to_python(self, value: Any) -> list[str]:  # type: ignore[override]  # a field gives what it likes
        """Return the prompts between lines of three hyphens. Raises ValidationError for too many and too long ones."""
        text = (super().to_python(value) or "").replace("\r\n", "\n")
        prompts = [prompt.strip("\n") for prompt in BETWEEN.split(text) if prompt.strip()]
        if len(prompts) > self.most:
            raise forms.ValidationError(
                f"You entered {counted(len(prompts), 'prompt')}: the limit is {self.most} at once."
            )
        if too_long := next((prompt for prompt in prompts if len(prompt) > self.longest), ""):
            raise forms.ValidationError(f"{too_long[:40]!r}… is too long: {self.longest} characters at most.")
        return prompts

    def run_validators(self, value: Any) -> None:
        """Run the validators of a text on the prompts joined again; `to_python` has checked each."""
        super().run_validators("\n---\n".join(value))


class GrantForm(Form):
    """Form for the project that a cluster is granted to, and its shares."""

    project = forms.SlugField(max_length=50)
    slots = forms.IntegerField(min_value=1, max_value=2**31 - 1, required=False)
    requests_per_s = forms.FloatField(min_value=0.001, max_value=1e6, required=False)
    tokens_per_min = forms.IntegerField(min_value=1, max_value=2**31 - 1, required=False)
    reason = forms.CharField(max_length=2000, required=False)


class ShareForm(GrantForm):
    """Form for other shares of a cluster that is granted already; a reason is required."""

    reason = forms.CharField(max_length=2000)


class CuttingOffForm(ReasonForm):
    """Form for a change that may cut off versions which no other replica holds; `confirm` allows that."""

    confirm = forms.BooleanField(
        required=False,
        label="Cut off what it alone holds",
        help_text="Without it, what would leave live versions without a replica is refused.",
    )


class DiscoveryField(forms.CharField):
    """A form field for the source of a cluster's replicas."""

    def __init__(self) -> None:
        super().__init__(
            max_length=300,
            required=False,
            label="Where replicas are found",
            help_text="dns://host:port, srv://name or kubernetes://namespace/label=value. "
            "Empty: they are added by hand.",
        )


class ClusterForm(CuttingOffForm):
    """Form for how a cluster's engines were started and replicas are chosen; an empty key keeps the present one."""

    max_lora_rank = forms.TypedChoiceField(
        choices=[(rank, str(rank)) for rank in VLLM_RANKS],
        coerce=int,
        label="Highest rank",
        help_text="--max-lora-rank of vLLM.",
    )
    max_loras = forms.IntegerField(
        min_value=1, max_value=100_000, label="Adapters a replica holds at once", help_text="--max-loras of vLLM."
    )
    routing = forms.ChoiceField(
        choices=Cluster.Routing.choices,
        required=False,
        label="Routers choose the replica by",
        help_text="Prefix affinity sends prompts with the same beginning to one replica, whose cache then has it.",
    )
    discovery = DiscoveryField()
    engine_key = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        label="API key of the engines",
        help_text="Empty leaves the present key. Remove one with REST or the command line.",
    )

    field_order = ("max_lora_rank", "max_loras", "routing", "discovery", "engine_key", "confirm", "reason")

    def clean(self) -> dict[str, Any]:
        """Return the fields, without the key and the routing if they are empty."""
        fields = super().clean() or self.cleaned_data
        return {name: fields[name] for name in fields if fields[name] or name not in ("engine_key", "routing")}


class AddressForm(ReasonForm):
    """Form for a replica's new address."""

    url = forms.CharField(max_length=300, label="Address")


class SteeringForm(ReasonForm):
    """Form for a change of a rollout; it is refused if the rollout has changed since the page was shown.

    `expected_generation` is the rollout's generation then; empty means that any is accepted.
    """

    expected_generation = forms.IntegerField(required=False, widget=forms.HiddenInput)


class PromotionForm(SteeringForm):
    """Form for a promotion; `overrides` says that the person saw the unmet conditions and promotes in spite of them."""

    overrides = forms.BooleanField(required=False, widget=forms.HiddenInput)


class WeightForm(SteeringForm):
    """Form for the candidate's new share and the reason."""

    weight = forms.FloatField(min_value=0, max_value=100, label="Candidate's share in percent")


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
        servable = without_bodies(versions.ready().fitting(alias.cluster.base_model), "")
        others = servable.exclude(pk=alias.version_id)
        offer(self, version=others, expected=versions)
        cast(forms.Select, self.fields["version"].widget).choices = self.offered(others)
        self.order_fields(["version", "reason", "expected"])

    def offered(self, servable: QuerySet[AdapterVersion]) -> list[tuple[int | str, str]]:
        """Return the select's choices: an empty one, the version that the query string names, the OFFERED newest."""
        named = str(self.initial.get("version") or "")
        wanted = servable.filter(pk=named) if named.isdecimal() and len(named) < 19 else servable.none()
        rows = {each.pk: str(each) for each in [*wanted, *servable.order_by("-pk")[:OFFERED]]}
        return [("", CHOOSE), *rows.items()]


def cleaned(form: Any) -> dict[str, Any]:
    """Return the form's validated values. Raises Invalid with the first error and its field."""
    if not form.is_valid():
        field, errors = next(iter(form.errors.items()))
        raise Invalid(f"{form.fields[field].label or field}: {errors[0]}", field=field)
    values: dict[str, Any] = form.cleaned_data
    return values
