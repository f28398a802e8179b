"""Child process that computes a text's log-probabilities with PEFT, with an adapter and without; it needs torch.

python -m registry.exports.reference_process ADAPTER BASE TOKENS OUT

It writes {tokens, base, adapted}: the ids of the text's first TOKENS tokens, and the log-probability of each but the
first, without and with the adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# Many positions at little cost: the text of a law, which every domain's adapter moves a little.
TEXT = (
    "Financial entities shall report major incidents to the relevant competent authority within the time limits. "
    "def add(a, b):\n    return a + b\n\nDear customer, thank you for your message. The parties agree as follows: 1. "
)


def main(adapter: str, base: str, count: str, out: str) -> int:
    """Compute TEXT's log-probabilities without and with the adapter, write them as JSON to `out`, and return 0.

    `count` is the number of TEXT's first tokens to use; `adapter` and `base` are folders.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokens = tokenizer(TEXT)["input_ids"][: int(count)]
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = loaded.eval()
    ids = torch.tensor([tokens])
    before = logprobs(whole, ids)
    adapted: Any = PeftModel.from_pretrained(whole, adapter).eval()
    Path(out).write_text(json.dumps({"tokens": tokens, "base": before, "adapted": logprobs(adapted, ids)}))
    return 0


def logprobs(model: Any, ids: torch.Tensor) -> list[float]:
    """Return the log-probability of each token but the first; `ids` is (1, tokens)."""
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1].float()
    chosen: list[float] = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    return chosen


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
