"""LoRA adapters of the engine: reading, keeping in memory, and applying row by row."""
