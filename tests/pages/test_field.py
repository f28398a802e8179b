"""A form's field as every page shows it."""

from __future__ import annotations

import re

from django import forms
from django.template.loader import render_to_string


class RankForm(forms.Form):
    rank = forms.IntegerField(help_text="A multiple of 4.", max_value=64)


def test_a_field_is_described_by_its_help_text_and_its_errors() -> None:
    field = RankForm({"rank": "100"})["rank"]
    page = render_to_string("components/field.html", {"field": field})
    described = re.search(r'aria-describedby="([^"]+)"', page)[1].split()
    assert set(described) <= set(re.findall(r' id="([^"]+)"', page))
    assert "A multiple of 4." in page
    assert "less than or equal to 64" in page
