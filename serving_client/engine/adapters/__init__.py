"""LoRA adapters of the engine: read, kept in memory, and applied row by row."""
