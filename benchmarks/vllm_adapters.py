"""Decode speed when one batch mixes adapters: stock vLLM, vLLM with adapterhub-vllm, the embedded engine. On a GPU.

    python benchmarks/vllm_adapters.py --out benchmarks/results/vllm_adapters.json --log FILE

Needs vLLM 0.24 and the wheel adapterhub-vllm in this environment. An 8B Llama of dummy weights in bfloat16, adapters on
all linear modules, 64 tokens in and 192 out, greedy. Every engine is a process of its own; those of one wave hold the
GPU's memory together and are measured in turns, one at a time, so that both sides meet the same machine. Of the cells
with 32 slots there are three starts a side: the median counts, and the lowest and highest are in the log.
The embedded engine is measured in turn with both. `--waves tiles,32+128,32+64,32,embedded` picks parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, arguments, publish  # noqa: E402

HIDDEN, INNER, KV, LAYERS, VOCABULARY = 4096, 14336, 1024, 32, 128256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
}
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
TOKENS = {"32": 192, "128": 96, "64": 192}  # of an answer
EMBEDDED_AHEAD = 8  # adapters from which on the embedded engine is to be ahead of stock vLLM
PREFILLS = 3  # of each start: one takes 0.6 s
Cell = tuple[int, int]  # requests, adapters
Figures = dict[str, Any]
# slots, rank, most requests, GB of KV cache, cells
WAVES: dict[str, tuple[int, int, int, int, tuple[Cell, ...]]] = {
    "32": (32, 16, 32, 4, ((32, 0), (32, 1), (32, 8), (32, 32))),
    "128": (128, 16, 256, 6, ((128, 0), (128, 1), (128, 32), (128, 128), (256, 1), (256, 128))),
    "64": (32, 64, 32, 4, ((32, 0), (32, 1), (32, 32))),
}


# Turns in their order: waves that share the GPU, and their engines: a side and the lane of its compile cache.
TURNS: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "32+128": ("32+128", [("stock", 0), ("plugin", 1), ("stock", 2), ("plugin", 3)]),
    "32+64": ("32+64", [("stock", 0), ("plugin", 1), ("stock", 2), ("plugin", 3)]),
    "32": ("32", [("stock", 0), ("plugin", 1), ("tuned", 4)]),
    "embedded": ("32+128", [("stock", 0), ("embedded", 5), ("stock", 2), ("embedded", 6)]),
}
PROGRAMS = {"embedded": "embedded_engine.py"}  # by side; the others are vLLM


class Engine:
    """A vLLM process of one side, which answers cells."""

    def __init__(self, side: str, settings: Figures, lane: int, work: Path) -> None:
        self.side = side
        # An empty list of plugins loads none. A lane has a compile cache of its own: two engines of one key would race.
        own = {"VLLM_CACHE_ROOT": str(work / f"cache-{lane}"), "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
        own |= {} if side == "plugin" else {"VLLM_PLUGINS": ""}
        own |= {"VLLM_TUNED_CONFIG_FOLDER": str(work / "tiles")} if side == "tuned" else {}
        self._log = (work / f"{side}-{lane}.log").open("a")
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(ROOT / "benchmarks" / PROGRAMS.get(side, "vllm_engine.py")), json.dumps(settings)],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._ask, self._replies = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)

    def ready(self) -> float:
        return float(self._answer()["ready_s"])

    def ask(self, **cell: Any) -> Figures:
        self._ask.write(json.dumps(cell) + "\n")
        self._ask.flush()
        return self._answer()

    def end(self) -> None:
        self._ask.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> Figures:
        for line in self._replies:
            if line.startswith("RESULT "):
                answer: Figures = json.loads(line.removeprefix("RESULT "))
                return answer
            self._log.write(line)
        raise RuntimeError(f"the engine ended; its log is {self._log.name}")


class Bench:
    """Runs waves and keeps every figure."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.figures: dict[tuple[str, str, Any], list[Figures]] = defaultdict(list)

    def wave(self, name: str, sides: Iterable[tuple[str, int]]) -> None:
        """Start all engines of a wave at once, then measure them in turns. A side has a lane: (side, lane)."""
        engines = []
        for wave, side, lane in self._split(name, list(sides)):
            slots, rank, rows, cache, _ = WAVES[wave]
            settings = {
                "model": str(self.work / "8b"),
                "slots": slots,
                "rank": rank,
                "rows": rows,
                "cache_gb": cache,
                "vocabulary": VOCABULARY,
            }
            engines.append((wave, Engine(side, settings, lane, self.work)))
        for wave, engine in engines:
            self._say(f"wave {wave} {engine.side}: started in {engine.ready():.0f} s")
        for wave, engine in engines:
            # Loads the adapters and compiles what is left; the embedded engine records a step for each length.
            for rows, adapters in WAVES[wave][4]:
                self._cell(engine, wave, rows, adapters, tokens=TOKENS[wave] if engine.side == "embedded" else 8)
        for wave, engine in engines:
            for rows, adapters in WAVES[wave][4]:
                figures = self._cell(engine, wave, rows, adapters, tokens=TOKENS[wave])
                self._keep(wave, engine.side, (rows, adapters), figures)
            if wave == "32":
                for _ in range(PREFILLS):
                    figures = self._cell(engine, wave, 32, 32, prompt=512, tokens=1)
                    self._keep(wave, engine.side, "prefill", figures)
        for _, engine in engines:
            engine.end()

    def _split(self, name: str, sides: list[tuple[str, int]]) -> list[tuple[str, str, int]]:
        """Of waves that share the GPU, as in `32+128`, the first two engines are of the first."""
        first, _, second = name.partition("+")
        return [(second if second and place > 1 else first, *side) for place, side in enumerate(sides)]

    def _cell(self, engine: Engine, wave: str, rows: int, adapters: int, *, prompt: int = 64, tokens: int) -> Figures:
        folder = str(self.work / f"adapter-{WAVES[wave][1]}")
        return engine.ask(rows=rows, folders=[folder] * adapters, prompt=prompt, tokens=tokens)

    def _keep(self, wave: str, side: str, cell: Any, figures: Figures) -> None:
        self.figures[wave, side, cell].append(figures)
        speed = figures.get("tokens_per_s") or figures["prompt_tokens_per_s"]
        first, usual, slow = (1000 * figures.get(name, 0) for name in ("ttft_p50", "itl_p50", "itl_p95"))
        self._say(f"wave {wave} {side} {cell}: {speed:.0f} tokens/s, first {first:.0f} ms, {usual:.2f} / {slow:.2f} ms")

    def _say(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def save(self, log: Path) -> None:
        cells = [
            {"wave": wave, "side": side, "cell": cell, "figures": figures}
            for (wave, side, cell), figures in self.figures.items()
        ]
        log.write_text(json.dumps(cells))


def write_model(work: Path) -> None:
    (work / "8b").mkdir(parents=True, exist_ok=True)
    (work / "8b/config.json").write_text(json.dumps(CONFIG))


def write_adapter(
    folder: Path, rank: int, layers: int, linears: dict[str, tuple[int, int]], *, seed: int = 0, size: float = 0.01
) -> None:
    """Random A and B on all linear modules, as PEFT writes them."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    generator = torch.Generator(device="cuda").manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": (
            torch.randn(shape, generator=generator, device="cuda") * size
        )
        .bfloat16()
        .cpu()
        for layer in range(layers)
        for name, (wide, out) in linears.items()
        for side, shape in (("A", (rank, wide)), ("B", (out, rank)))
    }
    modules = [name.split(".")[1] for name in linears]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "target_modules": modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")


def rows_of(cells_measured: list[Figures]) -> list[Row]:
    """The table: every cell of both sides, then the goals."""
    figures_of = {
        (
            each["wave"],
            each["side"],
            str(tuple(each["cell"]) if isinstance(each["cell"], list) else each["cell"]),
        ): each["figures"]
        for each in cells_measured
    }

    def speed(wave: str, side: str, cell: Any, of: str = "tokens_per_s") -> float:
        return median(figures[of] for figures in figures_of[wave, side, str(cell)])

    rows: list[Row] = []

    def add(label: str, ours: float, peer: float, goal: float | None = None) -> None:
        rows.append(Row(label, ours, peer, ours / peer, goal))

    for wave, (slots, rank, _, _, cells) in WAVES.items():
        for cell in cells:
            requests, adapters = cell
            many = f"{adapters or 'no'} adapter{'s' * (adapters != 1)}"
            place = f"rank {rank}, {slots} slots, {requests} requests, {many}"
            if (wave, "embedded", str(cell)) in figures_of:
                goal = 0.8 if not adapters else 1.0 if adapters >= EMBEDDED_AHEAD else None
                ours = speed(wave, "embedded", cell)
                add(f"tokens/s, embedded engine, {place}, against stock vLLM", ours, speed(wave, "stock", cell), goal)
            if (wave, "plugin", str(cell)) not in figures_of:
                continue
            goal = {("32", (32, 32)): 2.5, ("32", (32, 0)): 0.97, ("32", (32, 1)): 0.97}.get((wave, cell))
            ours = speed(wave, "plugin", cell)
            add(f"tokens/s, {place}, against stock vLLM", ours, speed(wave, "stock", cell), goal)
            if (wave, "tuned", str(cell)) in figures_of:
                add(f"tokens/s, {place}, against stock with tuned tiles", ours, speed(wave, "tuned", cell))
            if adapters and (wave, "plugin", str((requests, 0))) in figures_of:
                goal = {("32", (32, 32)): 0.8, ("128", (128, 128)): 0.7}.get((wave, cell))
                add(f"tokens/s, {place}, against base only", ours, speed(wave, "plugin", (requests, 0)), goal)
    if ("32", "plugin", "prefill") in figures_of:
        add(
            "prompt tokens/s, 32 prompts of 512 with 32 adapters, against stock vLLM",
            speed("32", "plugin", "prefill", "prompt_tokens_per_s"),
            speed("32", "stock", "prefill", "prompt_tokens_per_s"),
            1.0,
        )
    return rows


def main() -> None:
    options = arguments(__doc__ or "", "log", "waves", "work")
    work = Path(options.work or "/tmp/adapterhub-vllm-bench")  # noqa: S108
    log = Path(options.log or work / "vllm_adapters_log.json")
    waves = (options.waves or ",".join(("tiles", *TURNS))).split(",")
    write_model(work)
    bench = Bench(work)
    if "tiles" in waves:
        subprocess.run([sys.executable, str(ROOT / "benchmarks/vllm_tiles.py"), str(work / "tiles")], check=True)  # noqa: S603
    for rank in (16, 64):
        write_adapter(work / f"adapter-{rank}", rank, LAYERS, LINEARS)
    for name, (shared, sides) in TURNS.items():
        if name in waves:
            bench.wave(shared, sides)
            bench.save(log)
    if bench.figures:
        publish("vllm_adapters", rows_of(json.loads(log.read_text())), options.out)


if __name__ == "__main__":
    main()
