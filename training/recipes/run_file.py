"""The JSON files that tell recipes what to do, with a check of every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from training.lm.error_reporting import BadInput

Record = dict[str, Any]
# Strict fields would refuse the text that JSON has for a path.
TextPath = Annotated[Path, Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]
Counting = Annotated[int, Field(ge=0)]
FIXES = {
    "path_type": "name a path",
    "int_type": "must be a whole number, not {input!r}",
    "int_from_float": "must be a whole number, not {input!r}",
    "float_type": "must be a number, not {input!r}",
    "finite_number": "must be a number, not {input!r}",
    "string_type": "must be a text, not {input!r}",
    "list_type": "give a list, not {input!r}",
    "dict_type": "must be an object, not {input!r}",
    "model_type": "must be an object, not {input!r}",
    "missing": "is missing: add it",
    "greater_than": "{input} is too small: it must be above {gt:g}",
    "greater_than_equal": "{input} is too small: it must be at least {ge:g}",
    "less_than": "{input} is too large: it must be below {lt:g}",
    "literal_error": "choose {expected}, not {input!r}",
    "too_short": "give a list with at least one entry",
}


class Checked(BaseModel):
    """Base of the parts of a job file; they are immutable.

    Unknown fields are refused, and so are texts in place of numbers.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, record: Record) -> Self:
        """Return the part that a JSON record describes. Raises BadInput that names the first wrong field."""
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            raise BadInput(refusal(error, cls)) from None


class Hyperparameters(Checked):
    """Hyperparameters of a run. Lengths, such as `max_length`, and `eval_tokens` are in tokens.

    `batch_size` counts the rows of one pass in one process; a step of the optimiser has `gradient_accumulation` passes.
    `learning_rate` is the peak. A checkpoint is written every `checkpoint_steps`; `eval_tokens` limits the held-out
    sample. `threads` 0 leaves torch's default. `packing` 1 fills rows of max_length tokens with whole sequences.
    `recompute` 1 saves activation memory at the cost of time. `export_rank` is the rank of the LoRA to which other
    methods are converted, 0 for the run's ranks; `galore_rank` is the rank of the projected gradients. `as_chat` 1
    renders prompts and completions as turns in the model's chat template. `epochs` above 0 reads the data that often,
    in place of `steps`. `eval_steps` above 0 measures the held-out loss every so many steps, and the output is then of
    the best of these steps; `patience` above 0 stops after so many measurements without a better one. `loss` is the
    part of a row that counts in the loss, in held-out rows, too. `weight_decay` and `scheduler` are the optimiser's.
    `beta` is that of preference methods; `desirable_weight` and `undesirable_weight` are those of KTO's good and bad
    answers.
    """

    steps: Positive = 40
    batch_size: Positive = 4
    gradient_accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    max_length: Positive = 256
    warmup_steps: Counting = 0
    scheduler: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss: Literal["answers", "last_answer", "with_prompt"] = "answers"
    seed: Counting = 0
    checkpoint_steps: Positive = 20
    eval_tokens: Positive = 4096
    threads: Counting = 0
    packing: Counting = 0
    recompute: Counting = 0
    export_rank: Counting = 0
    galore_rank: Positive = 64
    as_chat: Counting = 0
    epochs: Counting = 0
    eval_steps: Counting = 0
    patience: Counting = 0
    beta: Annotated[float, Field(gt=0)] = 0.1
    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0

    @property
    def sequences(self) -> int:
        """Return the number of sequences that one process reads in all steps."""
        return self.steps * self.batch_size * self.gradient_accumulation


class RunFile(Checked):
    """The fields that every job file has.

    They are the base model's folder, the output folder, and the file to which progress events are appended, if any.
    """

    base_model: TextPath
    output: TextPath
    events: TextPath | None = None

    @classmethod
    def read(cls, record: Record) -> Self:
        """Return the job file that the record describes; a field that is null counts as absent.

        Raises BadInput that names the first wrong field, also if `base_model` is not a model's folder.
        """
        made = super().read({name: value for name, value in record.items() if value is not None})
        if not (made.base_model / "config.json").is_file():
            raise BadInput(f"base_model: {made.base_model} is not a model's folder.")
        return made


class Part(Checked):
    """A dataset of a mixture: its name, its files, and its weight relative to the other datasets.

    `eval` is the file of held-out rows, if there is one. `place` is 0 for the run's own dataset, else its number in
    `mixture`, from 1.
    """

    name: str
    train: TextPath
    eval: TextPath | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    place: Counting = 0

    def field(self, name: str) -> str:
        """Return the field's name in the run file, for an error: `train`, or for example `mixture.0.train`."""
        return f"mixture.{self.place - 1}.{name}" if self.place else name


class Run(RunFile):
    """A training run: files, ranks and hyperparameters.

    `r` and `lora_alpha` hold for the target modules that are not in `rank_pattern` and `alpha_pattern`, whose keys are
    `^` and the module's escaped full name. `init` is `random`, `eva`, or the path of a file of start values for A.
    `mixture` has the datasets besides `train`, which is named `data_name` and has the weight 1. `prompts` are texts by
    name, which the base model and each checkpoint answer. Methods that do not train a LoRA use the ranks for the LoRA
    to which they are converted. `devices` processes train it, as replicas (ddp) or in shards (fsdp).
    """

    base_model_name: str = Field(default_factory=lambda fields: str(fields["base_model"]))
    train: TextPath
    eval: TextPath | None = None
    r: Positive
    lora_alpha: Annotated[float, Field(gt=0)]
    rank_pattern: dict[str, Counting] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: Annotated[list[str], Field(min_length=1), AfterValidator(sorted)]
    hyperparameters: Hyperparameters = Hyperparameters()
    devices: Positive = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    init: str = "random"
    data_name: str = "train"
    mixture: list[Part] = []
    prompts: dict[str, str] = {}

    @property
    def parts(self) -> list[Part]:
        """Return all datasets of the run: its own first, with the weight 1, then those of the mixture."""
        first = Part(name=self.data_name, train=self.train, eval=self.eval)
        return [first, *(part.model_copy(update={"place": place}) for place, part in enumerate(self.mixture, start=1))]

    @property
    def sequences(self) -> int:
        """Return the number of sequences that all processes together read."""
        return self.hyperparameters.sequences * self.devices


def refusal(errors: ValidationError, kind: type[BaseModel]) -> str:
    """Return a sentence that names the first wrong field and the values that it takes."""
    error = errors.errors(include_url=False)[0]
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{field} is unknown; known are {', '.join(fields_around(kind, error['loc']))}."
    if error["type"] not in FIXES:
        return f"{field}: {error['msg']}."
    return f"{field}: {FIXES[error['type']].format(input=error['input'], **error.get('ctx', {}))}."


def fields_around(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the names of all fields of the part of a job file that has the wrong field.

    `kind` is the file's class, `place` the path of names that leads to the wrong field.
    """
    part: Any = kind
    for name in place[:-1]:
        part = part.model_fields[name].annotation
    return list(part.model_fields)


def read_record(path: Path) -> Record:
    """Return the JSON object in the file. Raises BadInput if it cannot be read or is not an object."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from None
    if not isinstance(record, dict):
        raise BadInput(f"{path} is not a JSON object.")
    return record


def events_path(record: Record) -> Path:
    """Return the record's `events`: the path of the file for progress and errors. Raises BadInput if it has none."""
    if not isinstance(record.get("events"), str):
        raise BadInput("events: name a path.")
    return Path(record["events"])


def write_atomically(path: Path, record: Record) -> None:
    """Write the record as JSON to the path, which is replaced in one step. Raises ValueError for NaN and infinity."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    part.replace(path)
