"""Greedy tokens of a real model: vLLM with row kernels against vLLM's own, and both against PEFT in float32.

    python benchmarks/vllm_tokens.py --model DIR --out benchmarks/results/vllm_tokens.json

The base and 8 adapters of ranks 8 to 64 in one batch, 64 tokens each, in bfloat16 and float16. Every answer is read
once by PEFT in float32: a token counts as PEFT's if it is PEFT's best after the same words. Where a side chose another
one, the difference of PEFT's two logits says whether that is rounding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, arguments, publish  # noqa: E402
from benchmarks.vllm_adapters import LINEARS, Engine, write_adapter  # noqa: E402

RANKS = (8, 16, 32, 64, 8, 16, 32, 64)
TOKENS, WORDS = 64, 32
SIDES = ("stock", "plugin")
DTYPES = ("bfloat16", "float16")
Answers = list[list[tuple[int, list[float]]]]  # of each prompt the tokens, each with its two best log-probabilities


def prompts(model: Path, count: int) -> list[list[int]]:
    """Beginnings of paragraphs of this repository's pages."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [part for page in sorted((ROOT / "docs").glob("*.md")) for part in page.read_text().split("\n\n")]
    read = (tokenizer(text).input_ids[:WORDS] for text in texts)
    return [ids for ids in read if len(ids) == WORDS][:count]


def adapters(model: Path, work: Path) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    sizes = dict(zip((4096, 14336, 1024), (hidden, inner, key), strict=True))
    linears = {name: (sizes[wide], sizes[out]) for name, (wide, out) in LINEARS.items()}
    for number, rank in enumerate(RANKS):
        write_adapter(work / f"small-{number}", rank, config["num_hidden_layers"], linears, seed=number, size=0.02)
    return [str(work / f"small-{number}") for number in range(len(RANKS))]


def collect_answers(
    model: Path, work: Path, texts: list[list[int]], folders: list[str]
) -> dict[tuple[str, str, str], Answers]:
    """(side, dtype, part) -> answers. All engines start together."""
    settings = {
        "model": str(model),
        "slots": len(folders),
        "rank": max(RANKS),
        "rows": len(texts),
        "cache_gb": 2,
        "load_format": "auto",
        "vocabulary": 49152,
    }
    pairs = [(side, dtype) for side in SIDES for dtype in DTYPES]
    engines = {pair: Engine(pair[0], settings | {"dtype": pair[1]}, 10 + lane, work) for lane, pair in enumerate(pairs)}
    answers = {}
    for (side, dtype), engine in engines.items():
        engine.ready()
        for part, used in (("8 adapters", folders), ("base only", [])):
            cell = engine.ask(rows=len(texts), folders=used, prompts=texts, tokens=TOKENS, answers=True)
            answers[side, dtype, part] = cell["answers"]
        engine.end()
    return answers


@torch.inference_mode()
def read_by_peft(model: Any, texts: list[list[int]], answers: Answers, adapters: int) -> list[float]:
    """By how much each token's logit lies below PEFT's best: 0 where it is the best. Rows take turns over adapters."""
    below = []
    words = torch.tensor(
        [text + [token for token, _ in answer] for text, answer in zip(texts, answers, strict=True)], device="cuda"
    )
    for number in range(max(1, adapters)):
        own = words[number :: max(1, adapters)]
        if adapters:
            model.set_adapter(str(number))
            logits = model(own).logits
        else:
            with model.disable_adapter():
                logits = model(own).logits
        logits_of_answer, chosen = logits[:, WORDS - 1 : -1], own[:, WORDS:, None]
        below += (logits_of_answer.max(-1).values - logits_of_answer.gather(2, chosen)[..., 0]).flatten().tolist()
    return below


def same_answers(first: Answers, theirs: Answers) -> tuple[int, int, list[float]]:
    """Equal tokens before the first difference of each answer, all tokens up to it, and the margins at differences."""
    equal = total = 0
    margins = []
    for own, other in zip(first, theirs, strict=True):
        place = next((at for at, (a, b) in enumerate(zip(own, other, strict=True)) if a[0] != b[0]), len(own))
        equal += place
        total += place + (place < len(own))
        if place < len(own):
            best, second = other[place][1]
            margins.append(best - second)
    return equal, total, margins


def main() -> None:
    options = arguments(__doc__ or "", "model", "work")
    work = Path(options.work or "/tmp/adapterhub-vllm-bench")  # noqa: S108
    model = Path(options.model)
    texts = prompts(model, 64)
    folders = adapters(model, work)
    answers = collect_answers(model, work, texts, folders)
    records = [
        {"side": side, "dtype": dtype, "part": part, "answers": answered}
        for (side, dtype, part), answered in answers.items()
    ]
    (work / "vllm_tokens_log.json").write_text(json.dumps(records))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).cuda()
    peft = PeftModel.from_pretrained(base, folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        peft.load_adapter(folder, adapter_name=str(number))
    peft.eval()
    rows = []
    for dtype in DTYPES:
        for part in ("8 adapters", "base only"):
            equal, total, margins = same_answers(answers["plugin", dtype, part], answers["stock", dtype, part])
            worst = max(margins, default=0.0)
            rows.append(
                Row(
                    f"{dtype}, {part}: tokens equal to stock vLLM's up to the first difference, of all "
                    f"({len(margins)} of {len(texts)} answers differ, where the two best log-probabilities lie "
                    f"at most {worst:.3f} apart)",
                    equal,
                    total,
                    equal / total,
                )
            )
            for side in SIDES:
                used = len(folders) if part == "8 adapters" else 0
                below = read_by_peft(peft, texts, answers[side, dtype, part], used)
                best = sum(each == 0 for each in below)
                others = f"the others lie at most {max(below):.3f} below"
                label = f"{dtype}, {part}: tokens of {side} that are PEFT's best in float32, of all ({others})"
                rows.append(Row(label, best, len(below), best / len(below)))
    publish("vllm_tokens", rows, options.out)


if __name__ == "__main__":
    main()
