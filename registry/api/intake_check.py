"""REST: the check of an adapter before its upload, from its configuration and the header of its weights alone."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from registry.adapter_files.manifest import MAX_CONFIG_BYTES
from registry.adapter_files.safetensors_header import MAX_HEADER_BYTES


class HeaderSerializer(serializers.Serializer[Any]):
    """An adapter's configuration and the first bytes of its weights, as sent for a check."""

    adapter_config = serializers.FileField(help_text="adapter_config.json")
    header = serializers.FileField(
        help_text="The first bytes of adapter_model.safetensors: 8 bytes with the header's length, and the header."
    )
    size = serializers.IntegerField(min_value=0, max_value=2**48, help_text="Bytes of the whole weights file.")
    fold = serializers.BooleanField(default=False, help_text="Whether different effective scales will be folded.")
    confirm_base = serializers.CharField(default="", allow_blank=True, max_length=2000)

    def validate_adapter_config(self, file: Any) -> Any:
        """Return the file. Raises ValidationError if the configuration is over 1 MB."""
        if file.size > MAX_CONFIG_BYTES:
            raise serializers.ValidationError("The configuration is over 1 MB.")
        return file

    def validate_header(self, file: Any) -> Any:
        """Return the file. Raises ValidationError if the header is over 2 MB."""
        if file.size > MAX_HEADER_BYTES + 8:
            raise serializers.ValidationError("The header is over 2 MB: send the first bytes of the file, not all.")
        return file


class FindingSerializer(serializers.Serializer[Any]):
    """A fault or a notice on an adapter's files."""

    level = serializers.ChoiceField(["fault", "notice"])
    code = serializers.CharField()
    field = serializers.CharField(help_text="The file, or a field of the configuration.")
    cause = serializers.CharField(help_text="What was found.")
    route = serializers.CharField(help_text="What to do; may be empty.")


class CheckSerializer(serializers.Serializer[Any]):
    """The result of the check. The numbers in the weights (NaN, no effect) are judged only after the upload."""

    accepted = serializers.BooleanField(help_text="True if no fault was found.")
    findings = FindingSerializer(many=True)
    reducible = serializers.BooleanField(
        help_text="True if it is refused only for what PEFT computes and engines do not: `keep` stores it."
    )
    modules_found = serializers.IntegerField()
    modules_expected = serializers.IntegerField(allow_null=True, help_text="Modules that the configuration adapts.")
    max_rank = serializers.IntegerField()
    parameters = serializers.IntegerField()
