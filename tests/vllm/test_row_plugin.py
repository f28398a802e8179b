"""The plugin beside vLLM's real classes and in a real server, which has no GPU and so runs its own kernels."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.tools import VLLM_PYTHON
from tests.vllm.server import VllmServer, environment

CHECK = Path(__file__).with_name("row_plugin_check.py")


def test_vllms_interfaces_are_those_that_the_plugin_expects(tmp_path: Path) -> None:
    done = subprocess.run(
        [VLLM_PYTHON, CHECK], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_a_server_says_once_a_process_that_its_own_kernels_run(servers: list[VllmServer]) -> None:
    lines = [line for line in servers[0].log.splitlines() if "adapterhub-vllm" in line]
    assert lines
    assert all("adapterhub-vllm is off, vLLM's own LoRA kernels run: vLLM 0.32.0" in line for line in lines)
