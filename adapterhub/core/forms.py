"""Forms whose labels end as those that templates write: without a colon."""

from __future__ import annotations

from typing import Any

from django import forms


class PlainLabels:
    """Mixin for a form of Django's own: its labels have no suffix."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"label_suffix": "", **options})


class Form(PlainLabels, forms.Form):
    """Base of the product's forms."""
