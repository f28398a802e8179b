"""The vLLM servers of `whole_product.py`, two with the wheel adapterhub-vllm and two without, and its installation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from adapterhub.embedded.options import DEFAULT_MODEL
from benchmarks.product_clients import ENGINE_SETTINGS, VllmServer

SLOTS, MAX_RANK = 16, 32
PORT, ROUTER_PORT, ENGINE_PORT = 18000, 18080, 18100
SERVERS = {"plugin-1": True, "plugin-2": True, "stock-1": False, "stock-2": False}


def vllm_servers(options: Any, home: Path, model: Path, clients: int) -> list[VllmServer]:
    """Return the servers, none of them started, spread over the GPUs that there are."""
    gpus = int(options.gpus or 1)
    command = [options.vllm_python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), *vllm_options(clients, is_cpu=options.device == "cpu")]
    servers = []
    for place, (name, has_plugin) in enumerate(SERVERS.items()):
        settings = ENGINE_SETTINGS | {"VLLM_CACHE_ROOT": str(home / f"cache-{name}")}
        settings |= {"CUDA_VISIBLE_DEVICES": str(place % gpus)} | ({} if has_plugin else {"VLLM_PLUGINS": ""})
        settings |= {"PYTHONPATH": options.vllm_path} if options.vllm_path else {}
        if options.device == "cpu":
            settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        servers.append(VllmServer(name, ENGINE_PORT + place, command, settings, home / f"{name}.log"))
    return servers


def vllm_options(clients: int, *, is_cpu: bool) -> list[str]:
    """Return the options of each server: slots, ranks, and memory for four servers on one GPU."""
    options = ["--served-model-name", DEFAULT_MODEL, "--host", "127.0.0.1", "--max-model-len", "1024"]
    options += ["--max-num-seqs", str(clients), "--enable-lora", "--max-lora-rank", str(MAX_RANK)]
    options += ["--max-loras", str(SLOTS), "--max-cpu-loras", str(SLOTS)]
    if is_cpu:
        return [*options, "--dtype", "float32", "--enforce-eager"]
    graphs = json.dumps({"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]})
    options += ["--dtype", "bfloat16", "--gpu-memory-utilization", "0.1"]
    return [*options, "--kv-cache-memory-bytes", str(4 << 30), "--compilation-config", graphs]


def settings_of(options: Any) -> dict[str, str]:
    """Return the environment of the installation."""
    return {
        "ADAPTERHUB_HOME": options.home,
        "ADAPTERHUB_PORT": str(PORT),
        "ADAPTERHUB_ROUTER_PORT": str(ROUTER_PORT),
        "ADAPTERHUB_ENGINES": "0",
        "ADAPTERHUB_ENGINE_HOSTS": ",".join(f"127.0.0.1:{ENGINE_PORT + place}" for place in range(len(SERVERS))),
        "ADAPTERHUB_API_REQUESTS_PER_S": "0",
        "ADAPTERHUB_CHILDREN": "8",
        "ADAPTERHUB_PROJECT_CHILDREN": "8",
    }
