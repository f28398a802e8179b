"""Held-out loss of a base model, with or without an adapter: `python -m training.recipes.evaluate EVAL_JSON`.

The file: {"base_model": DIR, "adapter": DIR or null, "data": FILE, "events": FILE, "output": DIR, "max_tokens": 4096,
"max_length": 1024, "seed": 0, "threads": 0}. The result is OUTPUT/result.json {"loss", "tokens", "rows"}.
"""

from __future__ import annotations

import sys
from typing import Annotated

from pydantic import Field

from training.lm.error_reporting import BadInput
from training.lm.events import Events
from training.recipes import entrypoint, run_file
from training.recipes.run_file import Counting, Positive, RunFile, TextPath


class Evaluation(RunFile):
    """The file of an evaluation on at most `max_tokens` tokens of `data`, in sequences of at most `max_length`.

    `adapter` is the folder of a PEFT adapter; None measures the base model alone.
    """

    adapter: TextPath | None = None
    data: TextPath
    max_tokens: Positive = 4096
    max_length: Annotated[int, Field(ge=2)] = 1024
    seed: Counting = 0
    threads: Counting = 0


def main(arguments: list[str]) -> int:
    """Evaluate as the file says; return the exit status: 0, 2 for bad input, 1 for anything else."""
    return entrypoint.measure(arguments, Evaluation, evaluate)


def evaluate(evaluation: Evaluation, events: Events) -> None:
    """Measure the held-out loss, and write it to OUTPUT/result.json and as an event.

    The event's `when` is `after` with an adapter, else `before`. Raises BadInput that names the field.
    """
    import torch

    from training.lm.base_model import load_model, load_tokenizer, sequences_of
    from training.lm.evaluation import held_out_loss, held_out_sample

    if evaluation.threads:
        torch.set_num_threads(evaluation.threads)
    tokenizer = load_tokenizer(evaluation.base_model)
    rows = sequences_of(evaluation.data, "data", tokenizer, evaluation.max_length)
    sequences = held_out_sample(rows, evaluation.max_tokens, evaluation.seed)
    model = load_model(evaluation.base_model)
    if evaluation.adapter:
        from peft import PeftModel

        if not (evaluation.adapter / "adapter_config.json").is_file():
            raise BadInput(f"adapter: {evaluation.adapter} is not an adapter's folder.")
        model = PeftModel.from_pretrained(model, str(evaluation.adapter))
    measured = held_out_loss(model, sequences, tokenizer.pad_token_id)
    evaluation.output.mkdir(parents=True, exist_ok=True)
    run_file.write_atomically(evaluation.output / "result.json", measured.summary)
    events.write("evaluation", when="after" if evaluation.adapter else "before", **measured.summary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
