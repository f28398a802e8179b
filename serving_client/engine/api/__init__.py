"""The engine's HTTP application in vLLM's words."""
