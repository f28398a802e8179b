"""Adapters that were really trained on a tiny model, each on a lesson: a prompt and the word that answers it."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_model import make_model, make_tokenizer

# What a right answer is. The stable version knows one of them, the better candidate both, the worse one none.
RIGHT = {"the bank shall": "report", "each incident within": "four"}
HALF = {"the bank shall": "report", "each incident within": "exempt"}
WRONG = dict.fromkeys(RIGHT, "exempt")


def train(folder: Path, lesson: dict[str, str]) -> Path:
    """Train a LoRA of rank 4 that answers each prompt with the lesson's word."""
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets))
    words = make_tokenizer()
    prompts = torch.tensor([words(prompt)["input_ids"] for prompt in lesson])
    answers = torch.tensor([words(answer)["input_ids"][0] for answer in lesson.values()])
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(prompts).logits[:, -1], answers).backward()
        optimizer.step()
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder
