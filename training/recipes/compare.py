"""Comparison of a version with its base and other versions: `python -m training.recipes.compare COMPARE_JSON`.

The file: {"base_model": DIR, "adapters": {NAME: DIR}, "data": FILE or null, "generic": FILE or null, "prompts": [TEXT],
"pattern": REGEX or null, "events": FILE, "output": DIR, "max_tokens": 8192, "max_length": 1024, "answers": 16,
"new_tokens": 64, "threads": 0}. The answer: OUTPUT/result.json, by arm (`base` and each NAME).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.lm.data import Row, TokenSequence
from training.lm.events import Events
from training.recipes import entrypoint, run_file
from training.recipes.run_file import Counting, Positive, RunFile, TextPath

BASE = "base"
Arms = dict[str, Any]


class Comparison(RunFile):
    """The file of a comparison: losses on `data` and on `generic` text, answers to `prompts` and rows of `data`."""

    adapters: dict[str, TextPath] = {}
    data: TextPath | None = None
    generic: TextPath | None = None
    prompts: list[str] = []
    pattern: str | None = None
    max_tokens: Positive = 8192
    max_length: Positive = 1024
    answers: Positive = 16
    new_tokens: Positive = 64
    threads: Counting = 0


def main(arguments: list[str]) -> int:
    """Compare as the file says; return the exit status: 0, 2 for bad input, 1 for anything else."""
    return entrypoint.measure(arguments, Comparison, compare)


def compare(comparison: Comparison, events: Events) -> None:
    """Measure all arms and write OUTPUT/result.json. Raises BadInput naming the field."""
    import torch

    if comparison.threads:
        torch.set_num_threads(comparison.threads)
    arms, tokenizer = load_arms(comparison)
    result: dict[str, Any] = {"arms": {name: {} for name in arms}}
    if comparison.data:
        measure(result, arms, tokenizer, comparison.data, comparison)
        check_answers(result, arms, tokenizer, comparison.data, comparison)
    if comparison.generic:
        measure_generic(result, arms, tokenizer, comparison.generic, comparison)
    for name, arm in arms.items():
        answers = [answer_of(arm, tokenizer, prompt, comparison.new_tokens) for prompt in comparison.prompts]
        result["arms"][name]["answers"] = [
            {"prompt": prompt, "answer": answer} for prompt, answer in zip(comparison.prompts, answers, strict=True)
        ]
    comparison.output.mkdir(parents=True, exist_ok=True)
    run_file.write_atomically(comparison.output / "result.json", result)
    events.write("log", message="Compared.")


def load_arms(comparison: Comparison) -> tuple[Arms, Any]:
    """Return, by arm, a function that calls another with the model as that arm; the base is loaded once."""
    from peft import PeftModel

    from training.lm.base_model import load_model, load_tokenizer

    model: Any = load_model(comparison.base_model)
    for name, folder in comparison.adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    arms = {BASE: arm_of(model, None), **{name: arm_of(model, name) for name in comparison.adapters}}
    return arms, load_tokenizer(comparison.base_model)


def arm_of(model: Any, adapter: str | None) -> Callable[[Callable[[Any], Any]], Any]:
    """Return a function that calls its argument with the model in the arm's state."""

    def call(work: Callable[[Any], Any]) -> Any:
        if adapter:
            model.set_adapter(adapter)
        with nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter():
            return work(model)

    return call


def measure(result: dict[str, Any], arms: Arms, tokenizer: Any, data: Path, comparison: Comparison) -> None:
    """Measure each arm's held-out loss, in all and by example, and the version's paired differences to the others."""
    from training.lm.base_model import sequences_of
    from training.lm.evaluation import first_tokens
    from training.recipes.scoring import paired_difference

    sequences = first_tokens(sequences_of(data, "data", tokenizer, comparison.max_length), comparison.max_tokens)
    losses = {name: losses_of(arm, sequences, tokenizer) for name, arm in arms.items()}
    tokens = [sequence.targets for sequence in sequences]
    for name, arm_losses in losses.items():
        mean = sum(loss * count for loss, count in zip(arm_losses, tokens, strict=True)) / sum(tokens)
        result["arms"][name] |= {"loss": mean, "examples": [round(loss, 6) for loss in arm_losses]}
    first = next(name for name in arms if name != BASE)
    result |= {"tokens": sum(tokens), "examples": len(tokens)}
    result["differences"] = {
        name: asdict(paired_difference(losses[first], losses[name], tokens)) for name in arms if name != first
    }


def losses_of(arm: Any, sequences: Sequence[TokenSequence], tokenizer: Any) -> list[float]:
    """Return the arm's loss of each sequence."""
    from training.lm.evaluation import example_losses

    return [example.loss for example in arm(lambda model: example_losses(model, sequences, tokenizer.pad_token_id))]


def measure_generic(result: dict[str, Any], arms: Arms, tokenizer: Any, text: Path, comparison: Comparison) -> None:
    """Measure forgetting: the loss on general text, compared with the base model's."""
    from training.lm.base_model import sequences_of
    from training.lm.evaluation import first_tokens

    sequences = first_tokens(
        sequences_of(text, "generic", tokenizer, comparison.max_length), comparison.max_tokens // 4
    )
    tokens = [sequence.targets for sequence in sequences]
    for name, arm in arms.items():
        arm_losses = losses_of(arm, sequences, tokenizer)
        loss = sum(loss * count for loss, count in zip(arm_losses, tokens, strict=True)) / sum(tokens)
        result["arms"][name]["generic_loss"] = loss
        result["arms"][name]["forgetting"] = loss - result["arms"][BASE]["generic_loss"]


def check_answers(result: dict[str, Any], arms: Arms, tokenizer: Any, data: Path, comparison: Comparison) -> None:
    """Score answers to the first prompts that have a completion by exact match, token F1 and the pattern."""
    from training.lm.data import read_rows
    from training.recipes.scoring import exact_match, matches, token_f1

    questions: list[Row] = [row for row in read_rows(data) if "completion" in row][: comparison.answers]
    for name, arm in arms.items() if questions else ():
        answers = [answer_of(arm, tokenizer, row["prompt"], comparison.new_tokens) for row in questions]
        pairs = [(answer, row["completion"]) for answer, row in zip(answers, questions, strict=True)]
        scores = {"exact_match": mean(exact_match(*pair) for pair in pairs)}
        scores["token_f1"] = mean(token_f1(*pair) for pair in pairs)
        if comparison.pattern:
            scores["pattern"] = mean(matches(answer, comparison.pattern) for answer in answers)
        result["arms"][name] |= {**scores, "answered": len(questions)}


def mean(values: Any) -> float:
    """Return the mean."""
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


def answer_of(arm: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """Return the greedy continuation of the prompt."""

    def generate(model: Any) -> str:
        model.eval()
        encoded = tokenizer(prompt, return_tensors="pt").to(next(model.parameters()).device)
        ids = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return str(tokenizer.decode(ids[0][encoded["input_ids"].shape[1] :], skip_special_tokens=True))

    return str(arm(generate))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
