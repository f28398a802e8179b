"""Loads of a busy vLLM: missing versions one after another, and side by side as the control loop sends them.

    python benchmarks/replica_loads.py --work DIR --out FILE [--vllm-python PYTHON] [--vllm-path PATH] [--device cpu]

One vLLM server with dummy weights in the shape of SmolLM2-135M answers 64 clients, who name eight adapters in turn.
Meanwhile eight more adapters are loaded and probed by `replica_calls.push`, and unloaded again: with LOADS_AT_ONCE of 1
and of what the product has, in turns.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.product_clients import ENGINE_SETTINGS, Crowd, VllmServer, speed
from benchmarks.report import Row, arguments, publish
from registry.serving import replica_calls
from registry.serving.replica_calls import Engine, Loaded, LoadRequest
from tests.byte_llama import END, tokenizer

BASE, HOT, MISSING, CLIENTS, TOKENS, ROUNDS, RANK = "base", 8, 8, 64, 32, 5, 16
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
TINY = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 3}
SIDE_BY_SIDE = replica_calls.LOADS_AT_ONCE
PORT = 18411
PROMPT = "The bank reports the incident to the authority within four hours and names the person in charge. "


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """A Llama without weights whose tokenizer knows every byte."""
    tokenizer().save_pretrained(folder)
    heads = {"num_key_value_heads": shape["num_attention_heads"] // 3, "max_position_embeddings": 2048}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": END + 1, "rms_norm_eps": 1e-5}
    config |= {"torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": True, "eos_token_id": END}
    (folder / "config.json").write_text(json.dumps(config | heads | shape))


def write_adapter(folder: Path, shape: dict[str, int], seed: int) -> Path:
    """An adapter of all linear modules, as PEFT names their matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    wide, mid = shape["hidden_size"], shape["intermediate_size"]
    shapes = {f"self_attn.{name}_proj": (wide, wide if name in "qo" else wide // 3) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (wide, mid), "mlp.up_proj": (wide, mid), "mlp.down_proj": (mid, wide)}
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = dice.normal(0, 0.02, (RANK, inputs)).astype(np.float32)
            tensors[f"{stem}B.weight"] = dice.normal(0, 0.02, (outputs, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"base_model_name_or_path": BASE, "target_modules": [name.rpartition(".")[2] for name in shapes]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def server(options: Any, work: Path) -> VllmServer:
    """A vLLM server of the model, with a slot for every adapter."""
    command = [options.vllm_python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    command += [str(work / "model"), "--load-format", "dummy", "--served-model-name", BASE, "--host", "127.0.0.1"]
    command += ["--enable-lora", "--max-loras", str(HOT + MISSING), "--max-cpu-loras", str(HOT + MISSING)]
    command += ["--max-lora-rank", str(RANK), "--max-model-len", "1024", "--max-num-seqs", str(CLIENTS + MISSING)]
    settings = ENGINE_SETTINGS | ({"PYTHONPATH": options.vllm_path} if options.vllm_path else {})
    if options.device == "cpu":
        command += ["--dtype", "float32", "--enforce-eager"]
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    else:
        command += ["--gpu-memory-utilization", "0.2"]
    return VllmServer("vllm", PORT, command, settings, work / "vllm.log")


def loads(engine: Engine, requests: list[LoadRequest], at_once: int) -> tuple[float, float]:
    """Seconds until the first and until the last adapter is loaded and probed; all are unloaded again."""
    replica_calls.LOADS_AT_ONCE = at_once
    times: list[float] = []
    problems: list[Loaded] = []
    began = time.monotonic()

    def give(result: Loaded) -> None:
        times.append(time.monotonic() - began)
        problems.extend([result] if result.problem or result.refusal else [])

    replica_calls.push(engine, requests, began + 300, give)
    replica_calls.remove(engine, [request.name for request in requests], time.monotonic() + 300)
    if problems or len(times) < len(requests):
        raise RuntimeError(f"{len(times)} of {len(requests)} were loaded: {problems}")
    return times[0], times[-1]


async def measured(options: Any, work: Path) -> dict[int, list[tuple[float, float]]]:
    shape = TINY if options.short else SHAPE
    write_model(work / "model", shape)
    requests = [
        LoadRequest(f"adapter-{seed}", str(write_adapter(work / f"adapter-{seed}", shape, seed)), None)
        for seed in range(HOT + MISSING)
    ]
    vllm = server(options, work)
    vllm.start()
    taken: dict[int, list[tuple[float, float]]] = {1: [], SIDE_BY_SIDE: []}
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            await vllm.ready(session)
            engine = Engine(vllm.url)
            await asyncio.to_thread(replica_calls.push, engine, requests[:HOT], time.monotonic() + 300, lambda _: None)
            crowd = Crowd(session, vllm.url, "")
            ended = asyncio.Event()

            async def client(number: int) -> None:
                while not ended.is_set():
                    await crowd.ask(requests[number % HOT].name, f"{number}: {PROMPT}", TOKENS)

            clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
            await asyncio.sleep(5)
            for turn in range(ROUNDS):
                for at_once in (1, SIDE_BY_SIDE) if turn % 2 else (SIDE_BY_SIDE, 1):
                    times = await asyncio.to_thread(loads, engine, requests[HOT:], at_once)
                    # The first round warms what a load needs.
                    taken[at_once] += [times] if turn else []
            ended.set()
            await asyncio.gather(*clients)
            failed = sum(each.status != 200 for each in crowd.answers)
            sys.stdout.write(f"{len(crowd.answers)} answers, {failed} failed, {speed(crowd.answers):.0f} tokens/s\n")
    finally:
        vllm.kill()
    return taken


def main() -> None:
    options = arguments(__doc__ or "", "work", "vllm-python", "vllm-path", "device")
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    taken = asyncio.run(measured(options, work))
    sys.stdout.write(f"{taken}\n")
    rows = []
    for place, what in enumerate(("first of 8 loads, ms", "all of 8 loads, ms")):
        one, four = (1000 * median(each[place] for each in taken[side]) for side in (1, SIDE_BY_SIDE))
        rows.append(Row(f"{what}: side by side, in turn", four, one, one / four))
    publish("replica_loads", rows, options.out)


if __name__ == "__main__":
    main()
