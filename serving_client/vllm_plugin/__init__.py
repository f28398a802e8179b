"""Row kernels for vLLM: a batch that mixes many LoRA adapters decodes at nearly the speed of one.

vLLM's own kernels work on tiles of 32 and 64 tokens of one adapter; in a decode batch of many adapters nearly all of a
tile is empty. Here each row of a decode batch reads its own adapter's weights and no others, beside the base model's
product. Prefill and large batches stay with vLLM's kernels. Nothing is loaded before vLLM calls `register`.
"""

NAME = "adapterhub-vllm"
VERSION = "0.1.0"
