"""LoRA on the linear modules of a causal language model: `python -m training.recipes.lora RUN_JSON`.

Reads the run file (run_file.LoraRun), trains with TRL's SFTTrainer, and writes OUTPUT/adapter and OUTPUT/result.json.
The same file again goes on from the last complete checkpoint. SIGTERM: a checkpoint, then exit status 143.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from training.recipes import run_file
from training.recipes.rank_plan import check_plan
from training.recipes.run_file import LoraRun
from training.tars.boundary import guarded
from training.tars.events import Events

CANCELLED = 143


class Cancel:
    """SIGTERM: ends the process at once, except while training, which ends at the next step with a checkpoint."""

    def __init__(self) -> None:
        self.requested = self.training = False
        signal.signal(signal.SIGTERM, self.request)

    def request(self, *_: Any) -> None:
        self.requested = True
        if not self.training:
            sys.exit(CANCELLED)


def main(arguments: list[str]) -> int:
    """Exit status: 0, 2 for bad input, 143 when cancelled, 1 for anything else."""
    cancel, events = Cancel(), Events(None)

    def work() -> None:
        record = run_file.read_record(Path(arguments[0]))
        events.path = run_file.path_in(record, "events")
        train(LoraRun.read(record), events, cancel)

    return guarded(events, work)


def train(run: LoraRun, events: Events, cancel: Cancel) -> None:
    """The whole recipe, from files to files. Raises BadInput."""
    started = time.monotonic()
    import torch
    from datasets import Dataset, disable_progress_bars  # type: ignore[import-untyped]
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from training.recipes.checkpoints import Reporter, last_complete
    from training.recipes.evaluation import HeldOutLoss, first_tokens, held_out_loss
    from training.recipes.order import reading_order
    from training.recipes.start_values import set_start_values
    from training.tars.base_model import load_model, load_tokenizer, on_gpu, sequences_of
    from training.tars.data import sample

    chosen = run.hyperparameters
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    disable_progress_bars()
    set_seed(chosen.seed)
    run.output.mkdir(parents=True, exist_ok=True)

    # Data: only the rows that the run will read are tokenised; the order is fixed here, the trainer reads straight on.
    tokenizer = load_tokenizer(run.base_model)
    sequences = sequences_of(
        run.train, "train", tokenizer, chosen.max_length, lambda rows: sample(rows, chosen.sequences, chosen.seed)
    )
    lengths = [len(sequence.ids) for sequence in sequences]
    order = reading_order(lengths, chosen.sequences, chosen.batch_size, chosen.seed)
    held_out = sequences_of(run.eval, "eval", tokenizer, chosen.max_length) if run.eval else []
    held_out = first_tokens(held_out, chosen.eval_tokens)
    dataset = Dataset.from_dict(
        {"input_ids": [sequence.ids for sequence in sequences], "labels": [sequence.labels for sequence in sequences]}
    ).select(order)

    model = load_model(run.base_model)
    check_plan(run, [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)])

    def evaluate(when: str, evaluated: Any) -> HeldOutLoss | None:
        if not held_out:
            return None
        found = held_out_loss(evaluated, held_out, tokenizer.pad_token_id)
        events.write("evaluation", when=when, loss=found.loss, tokens=found.tokens)
        return found

    before = kept_before(run.output / "before.json") or evaluate("before", model)
    if before:
        run_file.write_atomically(run.output / "before.json", {"loss": before.loss, "tokens": before.tokens})

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(run.output / "checkpoints"),
            max_steps=chosen.steps,
            per_device_train_batch_size=chosen.batch_size,
            gradient_accumulation_steps=chosen.gradient_accumulation,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(chosen.warmup_steps, chosen.steps),
            seed=chosen.seed,
            # TRL's defaults are a GPU's: bfloat16 and recomputed activations cost time on a CPU.
            bf16=on_gpu(),
            use_cpu=not on_gpu(),
            activation_checkpointing=on_gpu(),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="steps",
            save_steps=chosen.checkpoint_steps,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=on_gpu(),
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=run.r,
            lora_alpha=run.lora_alpha,  # type: ignore[arg-type]  # a scale need not be whole
            rank_pattern=dict(run.rank_pattern),
            alpha_pattern=dict(run.alpha_pattern),
            target_modules=run.target_modules,
            lora_dropout=0.0,
        ),
    )
    trained: Any = trainer.model
    if run.init:
        count = set_start_values(trained, run.init)
        events.write("log", message=f"{count} modules begin with the start values of the analysis.")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reporter(events, cancel, lengths, order))

    checkpoint = last_complete(run.output / "checkpoints")
    events.write("log", message=f"Training from {checkpoint.name if checkpoint else 'the start'}.")
    cancel.training = True
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    cancel.training = False
    if cancel.requested:
        sys.exit(CANCELLED)

    after = evaluate("after", trained)
    save_adapter(trained, run)
    run_file.write_atomically(
        run.output / "result.json",
        {
            "method": "lora",
            "parameters": sum(weight.numel() for weight in trained.parameters() if weight.requires_grad),
            "loss_before": before.loss if before else None,
            "loss_after": after.loss if after else None,
            "eval_tokens": after.tokens if after else 0,
            "train_tokens": sum(lengths[place] for place in order),
            "steps": chosen.steps,
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def kept_before(path: Path) -> Any:
    """The evaluation of an earlier attempt: the base model has not changed since."""
    from training.recipes.evaluation import HeldOutLoss

    return HeldOutLoss(**json.loads(path.read_bytes())) if path.is_file() else None


def save_adapter(model: Any, run: LoraRun) -> None:
    """Exactly two files, the same bytes for the same weights; the folder appears at once."""
    part, folder = run.output / "adapter.part", run.output / "adapter"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)
    config = json.loads((part / "adapter_config.json").read_bytes())
    config.pop("megatron_core")  # a module to import: nothing that we publish names code
    config |= {"target_modules": run.target_modules, "base_model_name_or_path": run.base_model_name}
    (part / "adapter_model.safetensors").chmod(0o644)
    (part / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
