"""Evidence about a version: comparison with others, lineage, dossier and signature bundle."""
