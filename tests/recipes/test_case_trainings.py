"""Short trainings on files of tests/cases/: the weight of an answer, and a tool call, are what the model learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.byte_llama import LINEARS, save_model
from tests.lm.chat_tokenizer import TEMPLATES
from tests.recipes.runs import write_run
from training.datasets.readers import records_of
from training.datasets.scan import scan
from training.lm.base_model import load_model, load_tokenizer
from training.lm.evaluation import held_out_loss
from training.lm.token_sequences import tokenise
from training.recipes import lora

CASES = Path(__file__).parent.parent / "cases"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def train(folder: Path, case: str, template: str) -> Path:
    """Train a random model for 40 steps on the file's rows; return the base model's folder."""
    base = save_model(folder / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    scan(records_of(CASES / case, "jsonl"), folder)
    inputs = {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}
    chosen = {"learning_rate": 0.01, "max_length": 1024, "checkpoint_steps": 100, "eval_tokens": 400}
    path = write_run(
        folder / "run",
        {"base_model": str(base), **inputs},
        steps=40,
        target_modules=LINEARS,
        rank_pattern={},
        alpha_pattern={},
        hyperparameters=chosen,
    )
    assert lora.main([str(path)]) == 0
    return base


def loss_of(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    return held_out_loss(model, [tokenise(row, tokenizer, 1024)], 0).loss


def test_an_answer_of_weight_0_is_not_learnt(tmp_path: Path) -> None:
    from peft import PeftModel

    base = train(tmp_path, "12_openai_weight.jsonl", CHATML)
    model, tokenizer = load_model(base), load_tokenizer(base)
    question = {"role": "user", "content": "What does rule 7 of the harbour handbook say?"}
    wrong, right = (
        {"messages": [question, {"role": "assistant", "content": answer}]}
        for answer in ("WRONG: nobody knows.", "Rule 7 says that boat 49 must moor at pier 7.")
    )
    before = [loss_of(model, tokenizer, row) for row in (wrong, right)]
    trained = PeftModel.from_pretrained(model, str(tmp_path / "run" / "output" / "adapter"))
    after = [loss_of(trained, tokenizer, row) for row in (wrong, right)]
    assert after[1] < 0.6 * before[1]
    assert after[1] < 0.7 * after[0]


def test_a_tool_call_is_learnt_with_a_template_that_renders_it(tmp_path: Path) -> None:
    from peft import PeftModel

    base = train(tmp_path, "11c_tool_calls_with_text.jsonl", TEMPLATES["qwen2_5"].read_text())
    model, tokenizer = load_model(base), load_tokenizer(base)
    row = json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[0])
    before = loss_of(model, tokenizer, row)
    trained = PeftModel.from_pretrained(model, str(tmp_path / "run" / "output" / "adapter"))
    assert loss_of(trained, tokenizer, row) < 0.4 * before
    labelled = [label for label in tokenise(row, tokenizer, 1024).labels if label != -100]
    assert '"name": "lookup"' in tokenizer.decode(labelled)


def test_a_template_without_tools_refuses_the_file_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        train(tmp_path, "11c_tool_calls_with_text.jsonl", CHATML)
    assert "does not render tools" in capsys.readouterr().err
