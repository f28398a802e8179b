"""Forms of training's pages, limited to the user's project."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import QuerySet

from adapterhub.accounts.models import Project
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, BaseModel
from training.hyperparameters import TABLE, Choice
from training.models import Dataset, RankAnalysis, TrainingRun


class UploadForm(forms.Form):
    project = forms.ModelChoiceField(Project.objects.none())
    name = forms.CharField(max_length=200, required=False, help_text="Empty = the name of the file.")
    file = forms.FileField(help_text="JSONL with prompt and completion, messages or text; or plain text.")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["project"].queryset = projects


class RunForm(forms.Form):
    """A new training. The numbers have sane defaults; their bounds stand in one table."""

    adapter = forms.ModelChoiceField(Adapter.objects.none())
    dataset = forms.ModelChoiceField(Dataset.objects.none())
    method = forms.ChoiceField(choices=TrainingRun.Method.choices)
    rank_analysis = forms.ModelChoiceField(
        RankAnalysis.objects.none(), required=False, empty_label="none: the same rank everywhere"
    )

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["adapter"].queryset = Adapter.objects.live().filter(project__in=projects)
        self.fields["dataset"].queryset = Dataset.objects.filter(project__in=projects)
        planned = RankAnalysis.objects.filter(project__in=projects, status=JobStatus.SUCCEEDED)
        self.fields["rank_analysis"].queryset = planned.select_related("dataset")
        for name, entry in TABLE.items():
            if isinstance(entry, Choice):
                words = [(word, word) for word in entry.words]
                self.fields[name] = forms.ChoiceField(choices=words, help_text=entry.meaning)
                continue
            number = forms.IntegerField if isinstance(entry.default, int) else forms.FloatField
            self.fields[name] = number(
                initial=entry.default,
                min_value=entry.least,
                max_value=entry.most,
                help_text=entry.meaning,
                required=True,
            )

    def clean(self) -> dict[str, Any]:
        """What is of another project than the adapter is refused by its name."""
        adapter = self.cleaned_data.get("adapter")
        for name in ("dataset", "rank_analysis"):
            chosen = self.cleaned_data.get(name)
            if adapter and chosen and chosen.project_id != adapter.project_id:
                self.add_error(name, f"{chosen} is of another project than the adapter.")
        return self.cleaned_data

    def hyperparameters(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in TABLE}


class AnalysisForm(forms.Form):
    base_model = forms.ModelChoiceField(BaseModel.objects.none())
    dataset = forms.ModelChoiceField(Dataset.objects.none())
    preset = forms.ChoiceField(choices=RankAnalysis.Preset.choices)
    uniform_rank = forms.IntegerField(
        min_value=1, max_value=512, initial=16, help_text="The budget: as many parameters as this rank everywhere."
    )
    rank_min = forms.IntegerField(min_value=1, max_value=512, initial=4)
    rank_max = forms.IntegerField(min_value=1, max_value=512, initial=32)
    quantum = forms.IntegerField(min_value=1, max_value=64, initial=4, help_text="Ranks are multiples of it.")
    samples = forms.IntegerField(min_value=2, max_value=100_000, initial=48, help_text="Sequences to look at.")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["base_model"].queryset = BaseModel.objects.ready()
        self.fields["dataset"].queryset = Dataset.objects.filter(project__in=projects)


class BudgetForm(forms.Form):
    uniform_rank = forms.IntegerField(min_value=1, max_value=512, label="Budget as a uniform rank")
