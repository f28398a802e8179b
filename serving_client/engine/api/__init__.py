"""HTTP application of the engine, compatible with vLLM's."""
