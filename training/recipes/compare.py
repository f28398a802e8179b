"""Comparison of a version with its base and other versions: `python -m training.recipes.compare COMPARE_JSON`.

The file: {"base_model": DIR, "adapters": {NAME: DIR}, "data": FILE or null, "generic": FILE or null, "prompts": [TEXT],
"chat": true to send the prompts in the chat template, "as_chat": true to read the data's prompts so, too,
"pattern": REGEX or null, "variant": DIR or null, a copy of the base with other numbers, "events": FILE, "output": DIR,
"max_tokens": 8192, "max_length": 1024, "answers": 16, "new_tokens": 64, "seed": 0, "threads": 0}. The result is
OUTPUT/result.json, by arm (`base` and each NAME).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.lm.chat_template import prompt_text
from training.lm.events import Events
from training.lm.token_sequences import Row, TokenSequence, as_chat
from training.recipes import entrypoint, run_file
from training.recipes.run_file import Counting, Positive, RunFile, TextPath

BASE = "base"
Arms = dict[str, Any]
# Arm -> the loss of each example.
Losses = dict[str, list[float]]
# A row without its answer: {prompt}, or {messages, tools}.
Question = dict[str, Any]


class Comparison(RunFile):
    """The JSON file of a comparison of the base and `adapters`: losses on `data` and on `generic`, and answers.

    `adapters` are folders by name. `chat` sends `prompts` in the chat template, `as_chat` reads `data` so. `max_tokens`
    limits a loss' tokens, `max_length` a sequence's, `new_tokens` an answer's. Answers to `answers` rows of `data` are
    scored, also by the regex `pattern`. `variant` is the folder of a copy of the base with other numbers, whose loss on
    `data` is measured, too.
    """

    adapters: dict[str, TextPath] = {}
    data: TextPath | None = None
    generic: TextPath | None = None
    prompts: list[str] = []
    pattern: str | None = None
    variant: TextPath | None = None
    chat: bool = False
    as_chat: bool = False
    max_tokens: Positive = 8192
    max_length: Positive = 1024
    answers: Positive = 16
    new_tokens: Positive = 64
    seed: Counting = 0
    threads: Counting = 0


def main(arguments: list[str]) -> int:
    """Compare as the file says; return the exit status: 0, 2 for bad input, 1 for anything else."""
    return entrypoint.measure(arguments, Comparison, compare)


def compare(comparison: Comparison, events: Events) -> None:
    """Measure all models of the comparison, have them answer its prompts, and write OUTPUT/result.json.

    Raises BadInput that names the field.
    """
    import torch

    if comparison.threads:
        torch.set_num_threads(comparison.threads)
    arms, tokenizer = load_arms(comparison)
    result: dict[str, Any] = {"arms": {name: {} for name in arms}}
    losses: Losses = {}
    if comparison.data:
        losses = measure(result, arms, tokenizer, comparison.data, comparison)
        check_answers(result, arms, tokenizer, comparison.data, comparison)
    if comparison.generic:
        measure_generic(result, arms, tokenizer, comparison.generic, comparison)
    in_template = comparison.chat and bool(tokenizer.chat_template)
    questions = [question_of(prompt, is_chat=in_template) for prompt in comparison.prompts]
    for name, arm in arms.items():
        answers = [answer_of(arm, tokenizer, question, comparison.new_tokens) for question in questions]
        result["arms"][name]["answers"] = [
            {"prompt": prompt, "answer": answer} for prompt, answer in zip(comparison.prompts, answers, strict=True)
        ]
    del arms  # Two base models need not lie in memory at once.
    if comparison.variant and comparison.data:
        measure_variant(result, losses, comparison.variant, comparison.data, comparison)
    comparison.output.mkdir(parents=True, exist_ok=True)
    run_file.write_atomically(comparison.output / "result.json", result)
    events.write("log", message="Compared.")


def load_arms(comparison: Comparison) -> tuple[Arms, Any]:
    """Return (arms, tokenizer): the base model (`base`) and each adapter by name; the base model is loaded once.

    An arm is a function: arm(work) returns work(model), called while the arm's adapter, or none, is active.
    """
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
    """Return a function that calls its argument with the model while `adapter` is active, and returns the result.

    `adapter` None stands for the base model alone.
    """

    def call(work: Callable[[Any], Any]) -> Any:
        if adapter:
            model.set_adapter(adapter)
        with nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter():
            return work(model)

    return call


def sample_of(data: Path, tokenizer: Any, comparison: Comparison) -> list[TokenSequence]:
    """Return the token sequences of the file `data` on which every arm's loss is measured.

    They have at most `max_tokens` tokens that count, drawn by the seed. Raises BadInput for data that cannot be read.
    """
    from training.lm.base_model import sequences_of
    from training.lm.evaluation import held_out_sample

    choose = as_chat if comparison.as_chat else list
    rows = sequences_of(data, "data", tokenizer, comparison.max_length, choose)
    return held_out_sample(rows, comparison.max_tokens, comparison.seed)


def measure_variant(result: dict[str, Any], losses: Losses, variant: Path, data: Path, comparison: Comparison) -> None:
    """Add to `result` as `variant` the variant's loss on the same rows, alone and with the first adapter.

    `losses` are those of the base model's arms, by example, with which they are compared. Raises BadInput if the
    variant reads the rows as other tokens, and for data that cannot be read.
    """
    from training.lm.error_reporting import BadInput

    arms, tokenizer = load_arms(comparison.model_copy(update={"base_model": variant}))
    sequences = sample_of(data, tokenizer, comparison)
    tokens = sum(sequence.targets for sequence in sequences)
    if (tokens, len(sequences)) != (result["tokens"], result["examples"]):
        raise BadInput("variant: its tokenizer makes other tokens of the data than that of its base model.")
    weights = [sequence.weight for sequence in sequences]
    version = next(name for name in arms if name != BASE)
    cost, with_version = (
        cost_of(losses_of(arms[name], sequences, tokenizer), losses[name], weights) for name in (BASE, version)
    )
    result["variant"] = {**cost, "with_version": with_version, "tokens": tokens, "rows": len(sequences)}


def cost_of(variant: list[float], base: list[float], weights: list[float]) -> dict[str, Any]:
    """Return {loss, loss_base, difference}: mean losses of the variant and its base, and their paired difference.

    `variant` and `base` are losses in nats per token by example, `weights` the examples' weights.
    """
    from training.recipes.scoring import paired_difference

    means = (
        sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
        for losses in (variant, base)
    )
    difference = asdict(paired_difference(variant, base, weights))
    return {**dict(zip(("loss", "loss_base"), means, strict=True)), "difference": difference}


def measure(result: dict[str, Any], arms: Arms, tokenizer: Any, data: Path, comparison: Comparison) -> Losses:
    """Add each arm's held-out loss to `result`, overall and by example, and the first adapter's paired differences.

    The differences are to each other arm. Return the losses by arm and example. Raises BadInput for data that cannot be
    read.
    """
    from training.recipes.scoring import paired_difference

    sequences = sample_of(data, tokenizer, comparison)
    losses = {name: losses_of(arm, sequences, tokenizer) for name, arm in arms.items()}
    tokens = [sequence.weight for sequence in sequences]
    for name, arm_losses in losses.items():
        mean = sum(loss * count for loss, count in zip(arm_losses, tokens, strict=True)) / sum(tokens)
        result["arms"][name] |= {"loss": mean, "examples": [round(loss, 6) for loss in arm_losses]}
    first = next(name for name in arms if name != BASE)
    result |= {"tokens": sum(sequence.targets for sequence in sequences), "examples": len(tokens)}
    result["differences"] = {
        name: asdict(paired_difference(losses[first], losses[name], tokens)) for name in arms if name != first
    }
    return losses


def losses_of(arm: Any, sequences: Sequence[TokenSequence], tokenizer: Any) -> list[float]:
    """Return the loss of the model under this arm on each sequence, in nats per token."""
    from training.lm.evaluation import example_losses

    return [example.loss for example in arm(lambda model: example_losses(model, sequences, tokenizer.pad_token_id))]


def measure_generic(result: dict[str, Any], arms: Arms, tokenizer: Any, text: Path, comparison: Comparison) -> None:
    """Add each arm's loss on general text to `result`, and by how much it exceeds the base's (`forgetting`).

    Raises BadInput for a text that cannot be read.
    """
    from training.lm.base_model import sequences_of
    from training.lm.evaluation import held_out_sample

    rows = sequences_of(text, "generic", tokenizer, comparison.max_length)
    sequences = held_out_sample(rows, comparison.max_tokens // 4, comparison.seed)
    tokens = [sequence.targets for sequence in sequences]
    for name, arm in arms.items():
        arm_losses = losses_of(arm, sequences, tokenizer)
        loss = sum(loss * count for loss, count in zip(arm_losses, tokens, strict=True)) / sum(tokens)
        result["arms"][name]["generic_loss"] = loss
        result["arms"][name]["forgetting"] = loss - result["arms"][BASE]["generic_loss"]


def check_answers(result: dict[str, Any], arms: Arms, tokenizer: Any, data: Path, comparison: Comparison) -> None:
    """Add the scores of answers to the data's first questions to `result`: exact match, token F1 and the pattern.

    Each score is the mean over the questions. The question of a conversation is everything before its last answer, in
    the chat template, with its tools. At most `answers` questions are asked; rows of plain text and answers that call
    tools are left out. If no question is left, nothing is added. Raises BadPattern for a `pattern` that is not valid.
    """
    from training.lm.token_sequences import read_rows
    from training.recipes.scoring import exact_match, matches, token_f1

    rows = as_chat(read_rows(data)) if comparison.as_chat else read_rows(data)
    questions = [pair for pair in map(question_and_answer, rows) if pair][: comparison.answers]
    for name, arm in arms.items() if questions else ():
        answers = [answer_of(arm, tokenizer, question, comparison.new_tokens) for question, _ in questions]
        pairs = [(answer, expected) for answer, (_, expected) in zip(answers, questions, strict=True)]
        scores = {"exact_match": mean(exact_match(*pair) for pair in pairs)}
        scores["token_f1"] = mean(token_f1(*pair) for pair in pairs)
        if comparison.pattern:
            scores["pattern"] = mean(matches(answer, comparison.pattern) for answer in answers)
        result["arms"][name] |= {**scores, "answered": len(questions)}


def mean(values: Any) -> float:
    """Return the mean of the numbers, at least one."""
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


def question_of(prompt: str, *, is_chat: bool) -> Question:
    """Return the prompt as a question: a user's turn if `is_chat`, else plain text."""
    return {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}


def question_and_answer(row: Row) -> tuple[Question, str] | None:
    """Return a row's question and the expected answer, which is the last turn of a conversation.

    None for a plain text, for a conversation of one turn, and if the answer calls a tool.
    """
    if "completion" in row:
        return {"prompt": row["prompt"]}, row["completion"]
    if "messages" not in row or len(row["messages"]) < 2 or row["messages"][-1].get("tool_calls"):
        return None
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return {"messages": row["messages"][:-1], **tools}, row["messages"][-1]["content"]


def tokens_of(question: Question, tokenizer: Any) -> Any:
    """Return the tokens of a question as an engine would read it, as tensors with one row."""
    if "messages" in question:
        text = prompt_text(question["messages"], question.get("tools"), tokenizer)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")
    return tokenizer(question["prompt"], return_tensors="pt")


def answer_of(arm: Any, tokenizer: Any, question: Question, new_tokens: int) -> str:
    """Return the greedy answer of the arm's model to the question as text, of at most `new_tokens` tokens.

    `arm(work)` returns work(model). The model is left in evaluation mode.
    """

    def generate(model: Any) -> str:
        model.eval()
        encoded = tokens_of(question, tokenizer).to(next(model.parameters()).device)
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
