"""Form fields of training's pages: columns, prompts, mixtures, lists and switches."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import QuerySet

from training.models import Dataset
from training.models.hyperparameters import Choice, Hyperparameter
from training.models.mixture import Mixed


class MappingField(forms.CharField):
    """Form field of comma-separated pairs ours=theirs."""

    def to_python(self, value: Any) -> dict[str, str]:  # type: ignore[override]  # a field gives what it likes
        """Parse the pairs of columns. Raises ValidationError."""
        pairs = [pair.partition("=") for pair in (super().to_python(value) or "").split(",") if pair.strip()]
        if not all(sign and column.strip() for _, sign, column in pairs):
            raise forms.ValidationError("Enter pairs separated by commas, such as prompt=question, completion=answer.")
        return {name.strip(): column.strip() for name, _, column in pairs}


class PromptsField(forms.CharField):
    """Form field of named prompts; a line that begins with a space goes on with the prompt above it."""

    def prepare_value(self, value: Any) -> Any:
        """Return stored prompts as lines of NAME: PROMPT, further lines of each behind two spaces; else the text."""
        if not isinstance(value, dict):
            return value
        return "\n".join(f"{name}: {prompt}".replace("\n", "\n  ") for name, prompt in value.items())

    def to_python(self, value: Any) -> dict[str, str]:  # type: ignore[override]  # a field gives what it likes
        """Parse lines of NAME: PROMPT with their further lines. Raises ValidationError."""
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
    """Form field of datasets and their weights, one a line; `datasets` holds those that may be named."""

    datasets: QuerySet[Dataset] = Dataset.objects.none()

    def prepare_value(self, value: Any) -> Any:
        """Return a stored mixture as lines of NUMBER: WEIGHT; a submitted text unchanged."""
        if not isinstance(value, list):
            return value
        return "\n".join(f"{part['dataset']}: {part['weight']:g}" for part in value)

    def to_python(self, value: Any) -> list[tuple[str, float]]:  # type: ignore[override]  # a field gives what it likes
        """Parse lines of NAME: WEIGHT. Raises ValidationError."""
        lines = [line for line in (super().to_python(value) or "").splitlines() if line.strip()]
        parted = [line.rpartition(":") for line in lines]
        try:
            return [(name.strip(), float(weight)) for name, _, weight in parted]
        except ValueError:
            raise forms.ValidationError("Write NAME: WEIGHT on each line, such as support-chats: 0.5.") from None

    def named_in(self, project: int, mixture: list[tuple[str, float]]) -> list[Mixed]:
        """Return the project's datasets of these names or numbers. Raises ValidationError."""
        return [Mixed(self.one_named(project, name), weight) for name, weight in mixture]

    def one_named(self, project: int, name: str) -> Dataset:
        """Return the project's dataset of this name or number. Raises ValidationError."""
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
    """A form field of a hyper-parameter that is 0 or 1, as a switch."""

    def prepare_value(self, value: Any) -> bool:
        """Return whether the switch is on; a query has it as text."""
        return value not in (None, False, 0, "", "0", "False", "false")

    def to_python(self, value: Any) -> int:  # type: ignore[override]  # a field gives what it likes
        """Return 1 for a switch that is on, else 0."""
        return int(self.prepare_value(value))


class Switch(forms.CheckboxInput):
    """The widget of a switch, for which a posted 0 is off, as for a program that sends the number."""

    def __init__(self) -> None:
        super().__init__(attrs={"role": "switch"})

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Any:
        """Return the posted value, off for 0."""
        return data.get(name, "0") not in ("0", "false", "False")


def is_switch(entry: Hyperparameter | Choice) -> bool:
    """Return True for a hyper-parameter that is either 0 or 1."""
    return isinstance(entry, Hyperparameter) and isinstance(entry.default, int) and (entry.least, entry.most) == (0, 1)


class WordsField(forms.CharField):
    """Form field of a comma-separated list."""

    def __init__(self, *, number: type[float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    def to_python(self, value: Any) -> list[Any]:  # type: ignore[override]  # a field gives what it likes
        """Parse words or numbers parted by commas. Raises ValidationError."""
        words = [word.strip() for word in (super().to_python(value) or "").split(",") if word.strip()]
        try:
            return [self.number(word) for word in words] if self.number else words
        except ValueError:
            raise forms.ValidationError("Enter numbers separated by commas, such as 2e-3, 4e-3.") from None
