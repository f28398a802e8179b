"""Page of usage: requests, tokens, cold loads, GPU seconds and cost, by project, alias, version and day."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.timezone import now

from adapterhub.api.permissions import projects_with
from adapterhub.core.errors import Invalid
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import Scope
from training.usage import Period, usage

GROUPS = [
    "alias",
    "version",
    "day",
    "project",
    "alias,version",
    "alias,day",
    "project,day",
    "project,alias,version,day",
]
# Rows that the page shows; the CSV file has all of them.
MOST_ROWS = 500


class UsageForm(Form):
    """Form for the period of a usage report, and what each row stands for."""

    by = forms.ChoiceField(
        choices=[(name, name.replace(",", ", ")) for name in GROUPS],
        required=False,
        label="A row for each",
        help_text="What is added up in one row.",
    )
    since = forms.DateField(
        required=False, label="First day", widget=forms.DateInput(attrs={"type": "date"}), help_text="30 days if empty."
    )
    until = forms.DateField(
        required=False, label="Last day", widget=forms.DateInput(attrs={"type": "date"}), help_text="Today if empty."
    )


@login_required
def usage_page(request: HttpRequest) -> HttpResponse:
    """Show the form and the usage that it asks for, of the projects that the person may read.

    At most MOST_ROWS rows are shown. The status is 422 if the form has errors.
    """
    form = UsageForm(request.GET)
    context: dict[str, Any] = {"form": form}
    if form.is_valid():
        given = form.cleaned_data
        by = given["by"] or GROUPS[0]
        try:
            period = Period.of(given["since"], given["until"], now().date())
        except Invalid as error:
            form.add_error("since", str(error))
        else:
            groups = by.split(",")
            rows = usage(projects_with(request, Scope.READ), period, groups)
            query = urlencode({"by": by, "since": period.since.isoformat(), "until": period.until.isoformat()})
            context |= {
                "groups": groups,
                "period": period,
                "rows": [([row[name] for name in groups], row) for row in rows[:MOST_ROWS]],
                "left_out": max(0, len(rows) - MOST_ROWS),
                "query": query,
                "has_prices": bool(settings.PRICES),
            }
    return render(request, "training/usage.html", context, status=200 if form.is_valid() else 422)
