"""Why, of verbs that may be asked without saying it: programs cancel and revoke too, people are always asked."""

from __future__ import annotations

from rest_framework import serializers


class OptionalReasonSerializer(serializers.Serializer):
    reason = serializers.CharField(required=False, allow_blank=True, max_length=2000, default="",
                                   help_text="Kept in the audit trail.")  # fmt: skip
