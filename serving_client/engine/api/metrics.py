"""Metrics of the engine's load in Prometheus' text format, under vLLM's names."""

from __future__ import annotations

import time

from serving_client.engine.engine import Engine


def metrics_text(engine: Engine) -> str:
    """Return all metrics with their current values in Prometheus' text format."""
    load = engine.loop.load()
    label = f'{{model_name="{_escaped(engine.name)}"}}'
    values = [
        ("vllm:num_requests_running", "gauge", label, len(load.running)),
        ("vllm:num_requests_waiting", "gauge", label, len(load.waiting)),
        ("vllm:prompt_tokens_total", "counter", label, load.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", label, load.generated_tokens),
        ("vllm:lora_requests_info", "gauge", _lora_labels(engine, load.running, load.waiting), time.time()),
    ]
    return "".join(f"# TYPE {name} {kind}\n{name}{labels} {value}\n" for name, kind, labels, value in values)


def _lora_labels(engine: Engine, running: tuple[str, ...], waiting: tuple[str, ...]) -> str:
    limit = engine.limits.max_loras
    return f'{{max_lora="{limit}",running_lora_adapters="{_names(running)}",waiting_lora_adapters="{_names(waiting)}"}}'


def _names(names: tuple[str, ...]) -> str:
    return _escaped(",".join(sorted({name for name in names if name})))


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
