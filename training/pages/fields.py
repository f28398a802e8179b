"""Form fields of training's pages: columns, prompts, mixtures, lists and switches."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import QuerySet

from training.models import Dataset
from training.models.hyperparameters import Choice, Hyperparameter
from training.models.mixture import Mixed


class MappingField(forms.CharField):
    """Form field of column names as comma-separated pairs OURS=THEIRS."""

    def to_python(self, value: Any) -> dict[str, str]:  # type: ignore[override]  # a field gives what it likes
        """Return the pairs as a dict. Raises ValidationError for text of another form."""
        pairs = [pair.partition("=") for pair in (super().to_python(value) or "").split(",") if pair.strip()]
        if not all(sign and column.strip() for _, sign, column in pairs):
            raise forms.ValidationError("Enter pairs separated by commas, such as prompt=question, completion=answer.")
        return {name.strip(): column.strip() for name, _, column in pairs}


class PromptsField(forms.CharField):
    """Form field of named prompts, NAME: PROMPT on each line.

    A line that begins with a space continues the one above.
    """

    def prepare_value(self, value: Any) -> Any:
        """Return stored prompts as lines of text, further lines of a prompt indented by two spaces.

        Other values unchanged.
        """
        if not isinstance(value, dict):
            return value
        return "\n".join(f"{name}: {prompt}".replace("\n", "\n  ") for name, prompt in value.items())

    def to_python(self, value: Any) -> dict[str, str]:  # type: ignore[override]  # a field gives what it likes
        """Return the prompts by name; of two with the same name the later one counts.

        Raises ValidationError for a line of another form.
        """
        prompts: dict[str, str] = {}
        for line in (super().to_python(value) or "").splitlines():
            if line[:1].isspace() and prompts:
                last = next(reversed(prompts))
                prompts[last] += f"\n{line.removeprefix('  ') if line[:2].isspace() else line[1:]}"
                continue
            name, _, prompt = line.partition(":")
            if line.strip() and not (name.strip() and prompt.strip()):
                raise forms.ValidationError(f"Write NAME: PROMPT, not {line[:60]!r}.")
            prompts |= {name.strip(): prompt.strip()} if line.strip() else {}
        return {name: prompt.rstrip() for name, prompt in prompts.items()}


class MixtureField(forms.CharField):
    """Form field of datasets and their weights, one per line; `datasets` are those that may be named."""

    datasets: QuerySet[Dataset] = Dataset.objects.none()

    def prepare_value(self, value: Any) -> Any:
        """Return a stored mixture as lines of NUMBER: WEIGHT; submitted text unchanged."""
        if not isinstance(value, list):
            return value
        return "\n".join(f"{part['dataset']}: {part['weight']:g}" for part in value)

    def to_python(self, value: Any) -> list[tuple[str, float]]:  # type: ignore[override]  # a field gives what it likes
        """Return the lines NAME: WEIGHT as pairs. Raises ValidationError for a line of another form."""
        lines = [line for line in (super().to_python(value) or "").splitlines() if line.strip()]
        parted = [line.rpartition(":") for line in lines]
        try:
            return [(name.strip(), float(weight)) for name, _, weight in parted]
        except ValueError:
            raise forms.ValidationError("Write NAME: WEIGHT on each line, such as support-chats: 0.5.") from None

    def named_in(self, project: int, mixture: list[tuple[str, float]]) -> list[Mixed]:
        """Return the datasets of the project (a key) with these names or numbers, and their weights.

        Raises ValidationError for an unknown or ambiguous name.
        """
        return [Mixed(self.one_named(project, name), weight) for name, weight in mixture]

    def one_named(self, project: int, name: str) -> Dataset:
        """Return the project's dataset with this number or, if no dataset has that number, with this name.

        `project` is the project's key. Raises ValidationError if there is none, or several have the name.
        """
        of_project = self.datasets.filter(project=project)
        if name.isdecimal() and len(name) < 19 and (numbered := of_project.filter(pk=int(name)).first()):
            return numbered
        named = list(of_project.filter(name=name)[:2])
        if len(named) == 1:
            return named[0]
        numbers = ", ".join(str(each.pk) for each in named)
        raise forms.ValidationError(
            f"Several datasets are called {name!r}: write a number ({numbers}, ...)."
            if named
            else f"There is no ready dataset {name!r} in the adapter's project."
        )


class SwitchField(forms.BooleanField):
    """Form field of a hyperparameter that is 0 or 1, shown as a switch."""

    def prepare_value(self, value: Any) -> bool:
        """Return True if the switch is on; the value may be text from a query string."""
        return value not in (None, False, 0, "", "0", "False", "false")

    def to_python(self, value: Any) -> int:  # type: ignore[override]  # a field gives what it likes
        """Return 1 if the switch is on, else 0."""
        return int(self.prepare_value(value))


class Switch(forms.CheckboxInput):
    """The widget of a switch; a posted 0 means off, so that a program can send the number."""

    def __init__(self) -> None:
        super().__init__(attrs={"role": "switch"})

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Any:
        """Return True if the posted value is on; it is off if it is missing, 0 or false."""
        return data.get(name, "0") not in ("0", "false", "False")


def is_switch(entry: Hyperparameter | Choice) -> bool:
    """Return True for a hyperparameter that is either 0 or 1."""
    return isinstance(entry, Hyperparameter) and isinstance(entry.default, int) and (entry.least, entry.most) == (0, 1)


class WordsField(forms.CharField):
    """Form field of a comma-separated list of words, or of numbers if `number` is given."""

    def __init__(self, *, number: type[float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    def to_python(self, value: Any) -> list[Any]:  # type: ignore[override]  # a field gives what it likes
        """Return the comma-separated words as a list, as numbers if the field has `number`.

        Raises ValidationError if the field has `number` and a word is not a number.
        """
        words = [word.strip() for word in (super().to_python(value) or "").split(",") if word.strip()]
        try:
            return [self.number(word) for word in words] if self.number else words
        except ValueError:
            raise forms.ValidationError("Enter numbers separated by commas, such as 2e-3, 4e-3.") from None
