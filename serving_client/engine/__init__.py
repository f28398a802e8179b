"""Embedded engine: serves a base model and many LoRA adapters in one batch, with a subset of vLLM's OpenAI API."""
