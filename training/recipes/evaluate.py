"""Held-out loss of a base model, with or without an adapter: `python -m training.recipes.evaluate EVAL_JSON`.

The file: {"base_model": DIR, "adapter": DIR or null, "data": FILE, "events": FILE, "output": DIR, "max_tokens": 4096,
"max_length": 1024, "threads": 0}. The answer: OUTPUT/result.json {"loss", "tokens"}.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.lm.error_reporting import BadInput, guarded
from training.lm.events import Events
from training.recipes import run_file


def main(arguments: list[str]) -> int:
    """Evaluate as the file says; return the exit status: 0, 2 for bad input, 1 for anything else."""
    record: run_file.Record = {}
    events = Events(None)

    def work() -> None:
        record.update(run_file.read_record(Path(arguments[0])))
        events.path = run_file.path_in(record, "events")
        evaluate(record, events)

    return guarded(events, work)


def evaluate(record: run_file.Record, events: Events) -> None:
    """Measure the held-out loss and write OUTPUT/result.json. Raises BadInput naming the field."""
    folder = run_file.model_folder(record)
    output = run_file.path_in(record, "output")
    limits = {"max_tokens": 4096, "max_length": 1024, **record}
    most = int(run_file.number(limits, "max_tokens", whole=True, least=1))
    length = int(run_file.number(limits, "max_length", whole=True, least=2))

    import torch

    from training.lm.base_model import load_model, load_tokenizer, sequences_of
    from training.lm.evaluation import first_tokens, held_out_loss

    if record.get("threads"):
        torch.set_num_threads(record["threads"])
    tokenizer = load_tokenizer(folder)
    sequences = first_tokens(sequences_of(run_file.path_in(record, "data"), "data", tokenizer, length), most)
    model = load_model(folder)
    if record.get("adapter"):
        from peft import PeftModel

        if not (Path(record["adapter"]) / "adapter_config.json").is_file():
            raise BadInput(f"adapter: {record['adapter']} is no adapter folder.")
        model = PeftModel.from_pretrained(model, record["adapter"])
    loss = held_out_loss(model, sequences, tokenizer.pad_token_id)
    output.mkdir(parents=True, exist_ok=True)
    run_file.write_atomically(output / "result.json", {"loss": loss.loss, "tokens": loss.tokens})
    events.write("evaluation", when="after" if record.get("adapter") else "before", loss=loss.loss, tokens=loss.tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
