"""Export of a version's files: as stored, rewritten, merged into the base model, as GGUF, or as an edge bundle."""
