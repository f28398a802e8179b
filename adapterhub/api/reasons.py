"""The optional reason of REST operations such as cancel and revoke. The pages always require one from people."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class OptionalReasonSerializer(serializers.Serializer[Any]):
    """A reason, which may be left out."""

    reason = serializers.CharField(
        required=False, allow_blank=True, max_length=2000, default="", help_text="Recorded in the audit trail."
    )
