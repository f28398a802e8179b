"""A version's files for use elsewhere: as stored, rewritten, merged, as GGUF, or for the edge."""
