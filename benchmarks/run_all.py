"""The short form of every benchmark, one table: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "report.py",
    "run_all.py",
    "fetch_data.py",
    "registry_sides.py",
    "router_sides.py",
    "multi_gpu_arm.py",
    "tars_quality_plot.py",
    "rollout_statistics_plot.py",
    "product_clients.py",
    "product_figures.py",
    "product_servers.py",
    "vllm_engine.py",
    "vllm_tiles.py",
    "vllm_adapters_plot.py",
}
NEED_A_MODEL = {"methods.py", "multi_gpu.py"}
NEED_VLLM = {"replica_loads.py", "routing_policies.py", "vllm_adapters.py", "vllm_tokens.py", "whole_product.py"}


def main() -> int:
    failed = 0
    for script in sorted(path for path in HERE.glob("*.py") if path.name not in PARTS):
        if script.name in NEED_A_MODEL:
            sys.stdout.write(f"{script.stem}: left out, it needs --model and --data\n")
            continue
        if script.name in NEED_VLLM:
            sys.stdout.write(f"{script.stem}: left out, it needs vLLM on a GPU\n")
            continue
        sys.stdout.write(f"{script.stem}\n")
        sys.stdout.flush()
        failed += subprocess.run([sys.executable, str(script), "--short"], check=False).returncode != 0  # noqa: S603
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
