"""The form of an upload in the browser; the files themselves are read from the request."""

from __future__ import annotations

from typing import Any

from django import forms

from adapterhub.core.forms import Form

# A run's folder holds a few hundred files; what lies deeper is not looked for.
MOST_FILES, LONGEST_PATH = 5000, 1000
# An adapter is one file of weights, or its shards.
MOST_SENT = 100


class ListingField(forms.JSONField):
    """A field of [path, bytes] pairs in JSON: the files of a folder that somebody chose."""

    default_error_messages = {"listing": "Expected at most %(most)s pairs of a path and its bytes."}

    def to_python(self, value: Any) -> Any:
        """Return the pairs as tuples. Raises ValidationError for anything else, or too many."""
        pairs = super().to_python(value) or []
        if not isinstance(pairs, list) or len(pairs) > MOST_FILES or not all(map(is_file, pairs)):
            raise forms.ValidationError(self.error_messages["listing"], "listing", {"most": MOST_FILES})
        return [(path, size) for path, size in pairs]


class ChosenField(forms.JSONField):
    """A list of [name, bytes, time of the last change] of files that came in parts."""

    default_error_messages = {"chosen": "Expected at most %(most)s files with name, bytes and time."}

    def to_python(self, value: Any) -> Any:
        """Return the files as tuples (name, bytes, milliseconds).

        Raises ValidationError for anything else, or too many.
        """
        files = super().to_python(value) or []
        if not isinstance(files, list) or len(files) > MOST_SENT or not all(map(is_chosen, files)):
            raise forms.ValidationError(self.error_messages["chosen"], "chosen", {"most": MOST_SENT})
        return [tuple(file) for file in files]


def is_chosen(file: Any) -> bool:
    """Return True if it is a list of a name of bounded length, a size in bytes and a time in milliseconds."""
    if not isinstance(file, list) or len(file) != 3 or not is_file(file[:2]):
        return False
    return type(file[2]) is int and 0 <= file[2] < 2**48


def is_file(pair: Any) -> bool:
    """Return True if the pair is a list of a path, as text of bounded length, and a size in bytes."""
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    path, size = pair
    return isinstance(path, str) and len(path) <= LONGEST_PATH and type(size) is int and 0 <= size < 2**48


class UploadForm(Form):
    """The options of an upload, and the listing of the chosen files, which are read from the request."""

    listing = ListingField(required=False, widget=forms.HiddenInput)
    staged = ChosenField(required=False, widget=forms.HiddenInput)
    fold = forms.BooleanField(
        required=False,
        label="Fold different scales into B (fold)",
        help_text="For an adapter whose modules have different ranks or alphas, which some engines read as one.",
    )
    keep = forms.BooleanField(
        required=False,
        label="Keep it though engines cannot serve it (keep)",
        help_text="It is stored as it was sent, and can be reduced to a LoRA that they serve.",
    )
    confirm_base = forms.CharField(
        required=False,
        max_length=2000,
        label="Why it fits this base model (confirm_base)",
        widget=forms.TextInput,
        help_text="Only if its configuration names another. Kept with the version and in the audit trail.",
    )

    def clean(self) -> dict[str, Any]:
        """Return the fields. Raises ValidationError if both fold and keep are chosen."""
        fields: dict[str, Any] = super().clean() or self.cleaned_data
        if fields.get("keep") and fields.get("fold"):
            raise forms.ValidationError({"fold": "What is kept stays as it was sent: choose fold or keep."})
        return fields
