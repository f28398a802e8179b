"""A field that a call does not know is refused with the name that was meant, at any depth."""

from __future__ import annotations

import pytest
from rest_framework import serializers

from adapterhub.api.unknown_fields import require_known
from adapterhub.core.errors import Invalid


class Inner(serializers.Serializer):
    rank = serializers.IntegerField(required=False)


class Outer(serializers.Serializer):
    dataset = serializers.IntegerField(required=False)
    budget = Inner(required=False)
    steps = Inner(many=True, required=False)
    free = serializers.DictField(required=False)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"eval_dataset": 1}, "eval_dataset"),
        ({"budget": {"rnk": 1}}, "budget.rnk"),
        ({"steps": [{"rank": 1}, {"ranks": 1}]}, "steps.1.ranks"),
    ],
)
def test_an_unknown_field_is_named_by_its_path(body: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid, match=f"{field} is unknown; ") as caught:
        require_known(Outer(data=body), body)
    assert (caught.value.field, caught.value.code) == (field, "unknown_field")


@pytest.mark.parametrize("body", [{}, {"free": {"any": 1}}, {"steps": [{"rank": 1}]}, {"budget": None}, []])
def test_known_fields_pass(body: object) -> None:
    require_known(Outer(data=body), body)


def test_the_near_name_is_proposed() -> None:
    with pytest.raises(Invalid, match=r"datset is unknown; did you mean dataset\?"):
        require_known(Outer(), {"datset": 1})
