"""The training that all recipes share, from the input files to the output files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback, set_seed

from training.lm.base_model import load_model, load_tokenizer, on_gpu
from training.lm.evaluation import HeldOutLoss, mean_loss
from training.lm.token_sequences import is_chat
from training.recipes import run_file
from training.recipes.compare import Question, question_of
from training.recipes.entrypoint import Cancel, RunEvents
from training.recipes.rank_plan import check_plan
from training.recipes.run_file import Run
from training.recipes.training_loop import distributed
from training.recipes.training_loop.batches import Material
from training.recipes.training_loop.best_checkpoint import HeldOutCurve, restore_best
from training.recipes.training_loop.checkpoint_answers import Answering
from training.recipes.training_loop.checkpoints import Reporter, last_complete
from training.recipes.training_loop.divergence import require_sound
from training.recipes.training_loop.objective import Answers, Objective

Facts = dict[str, Any]
BEFORE = "before.json"
# The trainer's own `constant` has no warm-up.
SCHEDULERS = {"constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Trained:
    """Result of a training: the model, its trained weights, and a function that measures the held-out loss.

    `model` is PEFT's or the whole model, `weights` are gathered from all shards, and `loss(model)` returns the loss in
    nats, or None without held-out rows.
    """

    model: Any
    weights: dict[str, torch.Tensor]
    loss: Callable[[Any], float | None]


@dataclass(frozen=True)
class Method:
    """The parts in which one recipe differs from the others.

    `name` is the method's in the result. `load(run)` returns the base model; `adapt(model, run, material)` returns the
    model and a PEFT configuration, or None for one that is wrapped already or trained whole; `keep(trained, run)`
    writes OUTPUT/adapter and returns facts for the result; `settled(run)` returns the first step whose weights could be
    the output; `options` are further arguments of TRL's configuration; `callbacks` are added to the trainer;
    `objective` reads the rows, makes the trainer and measures the loss.
    """

    name: str
    keep: Callable[[Trained, Run], Facts]
    load: Callable[[Run], Any] = lambda run: load_model(run.base_model, distributed.where_to_load(run))
    adapt: Callable[[Any, Run, Material], Any] = lambda model, run, material: (model, None)
    options: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[TrainerCallback] = ()
    settled: Callable[[Run], int] = lambda run: 0
    objective: Objective = field(default_factory=Answers)


def train(run: Run, events: RunEvents, cancel: Cancel, method: Method) -> None:
    """Train the run by the method, and write its output and OUTPUT/result.json.

    It continues from the last complete checkpoint if there is one. Every process of the run calls it. Raises BadInput
    for files or settings that cannot be used, and Diverged for a loss that is not finite or a result that is worse than
    the model was before. If a cancel was requested, the process ends.
    """
    started, chosen = time.monotonic(), run.hyperparameters
    state = distributed.join(run, events)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    disable_progress_bars()
    set_seed(chosen.seed)
    run.output.mkdir(parents=True, exist_ok=True)

    tokenizer = load_tokenizer(run.base_model)
    material = method.objective.read(run, tokenizer)
    chosen = chosen.model_copy(update={"steps": material.steps})
    run, pad = run.model_copy(update={"hyperparameters": chosen}), tokenizer.pad_token_id
    model = method.load(run)
    check_plan(run, [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)])

    def measure(evaluated: Any) -> HeldOutLoss | None:
        return method.objective.measure(evaluated, run, material, pad) if material.held_out else None

    def evaluate(when: str, evaluated: Any) -> HeldOutLoss | None:
        if loss := measure(evaluated):
            events.write("evaluation", when=when, **loss.summary)
        return loss

    def evaluate_before(evaluated: Any) -> None:
        if stored_loss_before(run) is None and (loss := evaluate("before", evaluated)) and state.is_main_process:
            run_file.write_atomically(run.output / BEFORE, asdict(loss))

    sharded = run.sharding == "fsdp"
    if not sharded:
        evaluate_before(model)
    model, peft_config = method.adapt(model, run, material)
    trainer = make_trainer(run, method, model, peft_config, tokenizer, material)
    base_loss = [BaseLoss(evaluate_before)] if sharded else []
    curve = [HeldOutCurve(chosen, run.output, measure, events, state, method.settled(run))] if chosen.eval_steps else []
    reporter = Reporter(events, cancel, material.tokens, state, curve[0] if curve else None)
    for callback in (*base_loss, *method.callbacks, *curve, reporter):
        trainer.add_callback(callback)
    if run.prompts:
        trainer.add_callback(Answering(questions_of(run), tokenizer, events, state))

    checkpoint = last_complete(run.output / "checkpoints")
    events.write("log", message=f"Rows: {asdict(material.cuts)}.")
    events.write("log", message=f"Training from {checkpoint.name if checkpoint else 'the start'}.")
    trained = fit(trainer, checkpoint, cancel)
    best_step = restore_best(trained, run.output) if chosen.eval_steps else None

    after = evaluate("after", trained)
    weights = distributed.whole_weights(trained)
    if state.is_main_process:
        before = stored_loss_before(run)
        require_sound(before, after, [row.weight for row in material.held_out], method.objective.guess(model))
        facts = method.keep(Trained(trained, weights, lambda other: loss_of(measure(other))), run)
        facts |= {"loss_before": before.loss if before else None, "loss_after": after.loss if after else None}
        facts |= {"eval_tokens": after.tokens if after else 0, "eval_rows": after.rows if after else 0}
        facts |= after.rewards if after else {}
        facts |= parts_of(material, before, after)
        facts |= {"train_tokens": sum(material.tokens), "train_rows": asdict(material.cuts)}
        facts |= {"best_step": best_step} if best_step else {}
        facts |= {
            "method": method.name,
            "steps": trainer.state.global_step,
            "seconds": round(time.monotonic() - started, 1),
        }
        run_file.write_atomically(run.output / "result.json", facts)
    state.wait_for_everyone()


def parts_of(material: Material, before: HeldOutLoss | None, after: HeldOutLoss | None) -> Facts:
    """Return {held_out: [...]} with each dataset's loss before and after, rows and tokens.

    {} for a single dataset, or if a loss was not measured.
    """
    if len(material.parts) < 2 or before is None or after is None:
        return {}
    losses, start = [], 0
    for part in material.parts:
        rows = slice(start, start + part.rows)
        sequences = material.held_out[rows]
        measured = {
            name: mean_loss(loss.examples[rows], sequences) for name, loss in (("before", before), ("after", after))
        }
        counted = {"rows": part.rows, "tokens": sum(sequence.targets for sequence in sequences)}
        losses.append(
            {"dataset": part.name, "loss_before": measured["before"], "loss_after": measured["after"], **counted}
        )
        start += part.rows
    return {"held_out": losses}


def make_trainer(run: Run, method: Method, model: Any, peft_config: Any, tokenizer: Any, material: Material) -> Any:
    """Return the objective's trainer with the run's and the method's options; adapter weights are float32."""
    chosen = run.hyperparameters
    options: dict[str, Any] = {
        "output_dir": str(run.output / "checkpoints"),
        "max_steps": chosen.steps,
        "per_device_train_batch_size": chosen.batch_size,
        "gradient_accumulation_steps": chosen.gradient_accumulation,
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": SCHEDULERS.get(chosen.scheduler, chosen.scheduler),
        "weight_decay": chosen.weight_decay,
        "warmup_steps": min(chosen.warmup_steps, chosen.steps),
        "seed": chosen.seed,
        "bf16": on_gpu(),
        "use_cpu": not on_gpu(),
        "activation_checkpointing": bool(chosen.recompute),
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": chosen.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu(),
        "ddp_find_unused_parameters": False,
        **distributed.sharding(run),
        **method.options,
    }
    parts = {"model": model, "peft_config": peft_config, "processing_class": tokenizer}
    trainer = method.objective.trainer(run, parts, material, options)
    trainer.remove_callback(PrinterCallback)
    if peft_config is not None:
        in_float32(trainer.model)
    return trainer


def in_float32(model: Any) -> None:
    """Convert the trained weights to float32 in place, as TRL rounds adapters on a 4-bit base to bfloat16.

    Done by PEFT, the conversion would be undone when a run resumes.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def fit(trainer: Any, checkpoint: Path | None, cancel: Cancel) -> Any:
    """Train from the checkpoint, or from the start if it is None; return the model without wrappers but PEFT's.

    If a cancel was requested meanwhile, end the process with status CANCELLED; the last step's checkpoint is written.
    """
    cancel.training = True
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    cancel.leave_if_requested()
    return trainer.accelerator.unwrap_model(trainer.model)


def loss_of(measured: HeldOutLoss | None) -> float | None:
    """Return the measured loss; None without held-out rows."""
    return measured.loss if measured else None


class BaseLoss(TrainerCallback):
    """Callback that measures the base model's loss when the training starts: an adapter changes nothing at its start.

    It is for models in shards, which one device may not hold whole.
    """

    def __init__(self, measure: Callable[[Any], None]) -> None:
        self.measure = measure

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure the loss before the first step."""
        self.measure(model)


def questions_of(run: Run) -> dict[str, Question]:
    """Return the run's prompts by name, in the chat template if its rows are conversations or it sets `as_chat`."""
    in_template = bool(run.hyperparameters.as_chat) or is_chat(run.train)
    return {name: question_of(prompt, is_chat=in_template) for name, prompt in run.prompts.items()}


def stored_loss_before(run: Run) -> HeldOutLoss | None:
    """Return the base model's stored loss, perhaps from an earlier attempt; None if it was not measured yet."""
    path = run.output / BEFORE
    return HeldOutLoss(**json.loads(path.read_bytes())) if path.is_file() else None
