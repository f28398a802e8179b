"""The embedded engine: a base model and many LoRA adapters in one batch, behind vLLM's subset of the OpenAI API."""
