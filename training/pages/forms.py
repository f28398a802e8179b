"""Forms of training's pages; their choices are limited to the user's project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from django import forms
from django.db.models import QuerySet

from adapterhub.accounts.models import Project
from adapterhub.api.pages import offer, preselect
from adapterhub.core.forms import Form
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, BaseModel
from training.datasets.line_errors import LineError
from training.datasets.readers import FORMATS
from training.datasets.row_preview import ReadingOfRows
from training.datasets.text_streams import ENCODINGS
from training.lm.token_sequences import ANSWERS, LOSSES
from training.models import Dataset, RankAnalysis, TrainingRun
from training.models.analysis_settings import NAMES
from training.models.hyperparameters import TABLE, Choice
from training.models.retention import Retention
from training.pages.fields import MappingField, MixtureField, PromptsField, Switch, SwitchField, WordsField, is_switch
from training.tars.presets import CHOICES, SCHEDULERS
from training.tars.probed_rates import rate_of

PROBED = "had the lowest loss in the analysis' probe of a few steps"
# Hyper-parameters that most people choose; the form shows the others collapsed.
MAIN = ("rank", "steps", "batch_size", "learning_rate", "max_length")
STATED = ("many_adapters", "keeps_general_skill", "least_latency")


# What each part of a preset is.
PART_HELP = {
    "sensitivity": "How a module's worth for the task is measured: a short training, spectra or sizes of gradients, or "
    "the shift of the output.",
    "divergence": "How far a module's activations on the task are from those on other text; none: not asked.",
    "direction": "Which of the two is the reference of the divergence.",
    "objective": "concave: every further rank of a module is worth less; linear: as much as the first.",
    "init": "gradient: the analysis leaves start values for the training.",
    "kinds": "Which modules may get ranks above the least.",
    "power": "The worth of a rank is the sum of its singular values to this power.",
    "probe_steps": "Training steps of each probe.",
    "probe_rates": "Learning rates to try: 2e-3, 4e-3.",
    "target_modules": "Last parts of the names, such as up_proj, down_proj.",
}


class KeepingForm(Form):
    """Form for the retention class and the legal hold, with the reason."""

    retention = forms.ChoiceField(
        choices=Retention.choices,
        label="Kept",
        help_text="Its files cannot be erased before. Nothing is deleted by itself.",
    )
    hold = forms.BooleanField(
        required=False, label="Legal hold", help_text="Nothing of it can be erased, whatever its class."
    )
    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")


class UploadForm(Form):
    """Form for the file or source of a new dataset, and how it is read; `broken` are bad lines of a refused file."""

    project = forms.ModelChoiceField(Project.objects.none(), empty_label=None)
    name = forms.CharField(max_length=200, required=False, help_text="Default: the file's name.")
    file = forms.FileField(
        required=False,
        help_text="JSONL, JSON, CSV, Parquet or text, also as .gz or .zst; over 32 MB a worker checks it.",
    )
    source = forms.CharField(
        max_length=1000,
        required=False,
        label="Or a source",
        help_text="s3://bucket/key or hf://owner/name, as operators allow; a worker reads it.",
    )
    revision = forms.CharField(
        max_length=200, required=False, help_text="Of a source: a hub's branch, tag or commit, an object's version."
    )
    config = forms.CharField(max_length=200, required=False, help_text="Of a hub's dataset.")
    split = forms.CharField(max_length=200, required=False, help_text="Of a hub's dataset. Empty: all of them.")
    format = forms.ChoiceField(
        choices=[("", "by the file's extension"), *((form, form) for form in FORMATS)],
        required=False,
        help_text="Of the rows: which fields hold prompts and answers.",
    )
    encoding = forms.ChoiceField(
        choices=[("", "UTF-8, or what the file's mark says"), *ENCODINGS.items()],
        required=False,
        help_text="Of older programs' files.",
    )
    escape = forms.BooleanField(
        required=False, label="Escape control tokens", help_text="As <|im_end|> in prompts: they get a space."
    )
    mapping = MappingField(
        required=False,
        label="Columns",
        help_text="If the file's columns have other names: prompt=question, completion=answer.",
    )
    broken: Sequence[LineError] = ()

    def clean(self) -> dict[str, Any]:
        """Return the fields; add an error to `file` unless there is either a file or a source."""
        if bool(self.cleaned_data.get("file")) == bool(self.cleaned_data.get("source")):
            self.add_error("file", "Choose a file, or name a source, and not both.")
        return self.cleaned_data

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=projects)


class RenderingForm(Form):
    """Form for the base model, maximum length (in tokens) and reading with which a dataset's rows are shown."""

    base_model = forms.ModelChoiceField(BaseModel.objects.none(), to_field_name="slug", empty_label=None)
    max_length = forms.IntegerField(min_value=16, max_value=1_000_000, initial=256, help_text="Tokens of a sequence.")
    loss = forms.ChoiceField(
        choices=[(word, word) for word in LOSSES], required=False, help_text="What a run's loss counts."
    )
    as_chat = forms.BooleanField(
        required=False, label="Render by the chat template", help_text="Prompts and completions become turns."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, base_model=BaseModel.objects.ready())

    @property
    def reading(self) -> ReadingOfRows:
        """Return the way in which a run with these choices reads the rows."""
        return ReadingOfRows(self.cleaned_data["as_chat"], self.cleaned_data["loss"] or ANSWERS)


class RunForm(Form):
    """Form for a new training run; defaults and bounds of its numbers come from the table of hyperparameters."""

    adapter = forms.ModelChoiceField(Adapter.objects.none())
    dataset = forms.ModelChoiceField(Dataset.objects.none())
    validation_dataset = forms.ModelChoiceField(
        Dataset.objects.none(),
        required=False,
        empty_label="the dataset's held-out rows",
        help_text="All rows of it are evaluated on.",
    )
    mixture = MixtureField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "support-chats: 0.5"}),
        label="Mix in other datasets",
        help_text="One per line, as NAME: WEIGHT or NUMBER: WEIGHT. The dataset above has the weight 1.",
    )
    method = forms.ChoiceField(
        choices=TrainingRun.Method.choices, help_text="LoRA unless the advice on this page says otherwise."
    )
    rank_analysis = forms.ModelChoiceField(
        RankAnalysis.objects.none(),
        required=False,
        empty_label="none: the same rank everywhere",
        help_text="Its plan gives each module a rank of its own.",
    )
    uniform_rank = forms.IntegerField(
        min_value=1,
        max_value=512,
        required=False,
        label="Budget of the plan",
        help_text="As many parameters as this rank everywhere. Empty: the analysis' own budget.",
    )
    start_values = forms.BooleanField(
        required=False, initial=True, help_text="Start from the start values of the analysis, if it has any."
    )

    prompts = PromptsField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "deadline: When must an incident be reported?"}),
        help_text="One per line, as NAME: PROMPT; a line that begins with two spaces goes on with the prompt above. "
        "The base and each checkpoint answer them; the run's page shows it.",
    )

    priority = forms.IntegerField(
        min_value=-100, max_value=100, initial=0, required=False, help_text="The highest priority starts first."
    )
    anyway = forms.BooleanField(
        required=False,
        label="Queue it even if it will not fit",
        help_text="Whatever the preflight check says of memory and disk.",
    )
    many_adapters = forms.BooleanField(
        required=False, initial=True, label="One of many adapters on one base model", help_text="For the adviser."
    )
    keeps_general_skill = forms.BooleanField(
        required=False, initial=True, label="General skills must be kept", help_text="For the adviser."
    )
    least_latency = forms.BooleanField(required=False, label="Every millisecond counts", help_text="For the adviser.")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        planned = RankAnalysis.objects.filter(project__in=projects, status=JobStatus.SUCCEEDED)
        offer(
            self,
            adapter=Adapter.objects.live().filter(project__in=projects),
            dataset=Dataset.objects.ready().filter(project__in=projects),
            validation_dataset=Dataset.objects.ready().filter(project__in=projects),
            rank_analysis=planned.select_related("dataset").defer("plan"),
        )
        preselect(self, "adapter", "dataset")
        self.mixed.datasets = Dataset.objects.ready().filter(project__in=projects)
        for name, entry in TABLE.items():
            if isinstance(entry, Choice):
                words = [(word, word) for word in entry.words]
                self.fields[name] = forms.ChoiceField(choices=words, help_text=entry.meaning)
                continue
            if is_switch(entry):
                meaning = entry.meaning.removeprefix("1: ")
                help_text = meaning[0].upper() + meaning[1:]
                self.fields[name] = SwitchField(
                    required=False, initial=entry.default, help_text=help_text, widget=Switch()
                )
                continue
            number: Any = forms.IntegerField if isinstance(entry.default, int) else forms.FloatField
            # Left empty it is the method's default, which differs by far between answers and preferences.
            by_method = name == "learning_rate"
            self.fields[name] = number(
                initial=None if by_method else entry.default,
                min_value=entry.least,
                max_value=entry.most,
                help_text=f"{entry.meaning} Empty: the method's default." if by_method else entry.meaning,
                required=not by_method,
            )

    def propose(self, named: str | None) -> None:
        """Set the initial learning rate, and its help text, to the one that the analysis with the key `named` advises.

        It is the race's, else that of the lowest loss in the probe. Nothing happens without a key or such a rate.
        """
        try:
            analysis = self.fields["rank_analysis"].clean(named)
        except forms.ValidationError:
            return
        if analysis and (rate := rate_of(analysis.plan)):
            source = "is what the analysis' race advises" if analysis.plan.get("race") else PROBED
            self.fields["learning_rate"].initial = rate
            self.fields["learning_rate"].help_text += f" {rate:g} {source}."

    def clean(self) -> dict[str, Any]:
        """Return the fields, names of mixed datasets resolved; add errors for what is not of the adapter's project."""
        adapter = self.cleaned_data.get("adapter")
        for name in ("dataset", "validation_dataset", "rank_analysis"):
            chosen = self.cleaned_data.get(name)
            if adapter and chosen and chosen.project_id != adapter.project_id:
                self.add_error(name, f"{chosen} belongs to another project than the adapter.")
        if adapter and self.cleaned_data.get("mixture"):
            self.name_mixed(adapter.project_id)
        return self.cleaned_data

    @property
    def is_complete(self) -> bool:
        """Return True if the form as shown names an adapter and a dataset, so that the preflight check can be made."""
        return all(self[name].value() for name in ("adapter", "dataset"))

    @property
    def mixed(self) -> MixtureField:
        """Return the form's field of datasets to mix in."""
        return cast("MixtureField", self.fields["mixture"])

    def name_mixed(self, project: int) -> None:
        """Replace names and numbers of mixed datasets by the project's datasets; add an error for an unknown one.

        `project` is the project's key.
        """
        try:
            self.cleaned_data["mixture"] = self.mixed.named_in(project, self.cleaned_data["mixture"])
        except forms.ValidationError as error:
            self.add_error("mixture", error)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters to which the form gives a value."""
        return {name: self.cleaned_data[name] for name in TABLE if self.cleaned_data[name] is not None}

    def launch_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for `TrainingRun.planned`."""
        return {
            **{
                name: self.cleaned_data[name]
                for name in ("adapter", "dataset", "validation_dataset", "mixture", "method")
            },
            "priority": self.cleaned_data["priority"] or 0,
            "hyperparameters": self.hyperparameters(),
            "prompts": self.cleaned_data["prompts"],
            **self.planned(),
        }

    def stated(self) -> dict[str, bool]:
        """Return the adviser's inputs that the user stated because they cannot be measured."""
        return {name: self.cleaned_data[name] for name in STATED}

    def parts(self) -> list[tuple[str, list[forms.BoundField]]]:
        """Return the fields in groups with their titles; the page shows the last two groups collapsed."""
        tuned = [name for name in TABLE if name not in MAIN]
        rest = ("priority", "anyway", *STATED)
        return [
            ("What and how", [self[name] for name in self.fields if name not in (*tuned, *rest)]),
            ("More hyper-parameters", [self[name] for name in tuned]),
            ("Queue and adviser", [self[name] for name in rest]),
        ]

    def planned(self) -> dict[str, Any]:
        """Return the arguments for `TrainingRun.planned` on how the ranks are planned.

        They are `rank_analysis`; `budget`, None unless a uniform rank is given; and `start_values`, False if they are
        declined, else None, which leaves the choice to the analysis.
        """
        rank, wanted = self.cleaned_data["uniform_rank"], self.cleaned_data["start_values"]
        return {
            "rank_analysis": self.cleaned_data["rank_analysis"],
            "budget": {"uniform_rank": rank} if rank else None,
            "start_values": None if wanted else False,
        }


class AnalysisForm(Form):
    """Form for a new rank analysis."""

    base_model = forms.ModelChoiceField(BaseModel.objects.none())
    dataset = forms.ModelChoiceField(Dataset.objects.none())
    preset = forms.ChoiceField(
        choices=RankAnalysis.Preset.choices, help_text="What is measured, and how; its parts can be changed below."
    )
    uniform_rank = forms.IntegerField(
        min_value=1, max_value=512, initial=16, help_text="The budget: as many parameters as this rank everywhere."
    )
    rank_min = forms.IntegerField(
        min_value=0, max_value=512, required=False, help_text="0 may leave modules out. Empty: the preset's."
    )
    rank_max = forms.IntegerField(
        min_value=1, max_value=512, initial=32, help_text="No module gets more. What the clusters serve caps it, too."
    )
    quantum = forms.IntegerField(
        min_value=1, max_value=64, initial=4, label="Step of the ranks", help_text="Ranks are multiples of this."
    )
    samples = forms.IntegerField(min_value=2, max_value=100_000, initial=48, help_text="Sequences to analyse.")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        datasets = Dataset.objects.ready().filter(project__in=projects)
        offer(self, base_model=BaseModel.objects.ready(), dataset=datasets)
        preselect(self, "base_model", "dataset")
        for name, values in CHOICES.items():
            choices = [("", "the preset's"), *((value, value.replace("_", " ")) for value in values)]
            self.fields[name] = forms.ChoiceField(choices=choices, required=False, help_text=PART_HELP[name])
        self.fields |= {
            "power": forms.FloatField(
                required=False,
                label="Exponent of the singular values",
                help_text=f"{PART_HELP['power']} Empty: the preset's.",
            ),
            "probe_steps": forms.IntegerField(required=False, help_text=PART_HELP["probe_steps"]),
            "probe_rates": WordsField(required=False, number=float, help_text=PART_HELP["probe_rates"]),
            **race_fields(),
            "target_modules": WordsField(required=False, help_text=f"{PART_HELP['target_modules']} Empty: all."),
        }

    def main(self) -> list[forms.BoundField]:
        """Return the fields that are shown first."""
        return [field for field in self if field.name not in NAMES]

    def parts(self) -> list[forms.BoundField]:
        """Return the fields of the settings that can override the preset."""
        return [self[name] for name in NAMES]

    def settings(self) -> dict[str, Any]:
        """Return the settings that were filled in, by name; empty fields are left out."""
        return {name: value for name in NAMES if (value := self.cleaned_data.get(name)) not in (None, "", [])}


def race_fields() -> dict[str, forms.Field]:
    """Return the fields of the preset race: the run to come, and what the race may cost."""
    schedulers = [("", "the preset's"), *((word, word) for word in SCHEDULERS)]
    return {
        "run_steps": forms.IntegerField(required=False, help_text="Race: steps of the run to come. Empty: 600."),
        "run_batch_size": forms.IntegerField(required=False, help_text="Race: sequences in each of them. Empty: 8."),
        "run_scheduler": forms.ChoiceField(
            choices=schedulers, required=False, help_text="Race: how the run's learning rate falls; linear if empty."
        ),
        "race_share": forms.FloatField(
            required=False, help_text="Race: the most tokens that it reads, as a share of the run's. Empty: 0.15."
        ),
        "race_rates": WordsField(
            required=False, number=float, help_text="Race: learning rates to try. Empty: those that suit the model."
        ),
    }


class BudgetForm(Form):
    """Form for a budget, given as a uniform rank."""

    uniform_rank = forms.IntegerField(min_value=1, max_value=512, label="Budget as a uniform rank")
