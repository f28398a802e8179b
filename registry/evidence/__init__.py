"""What can be proved of a version: comparison, lineage, dossier and signature bundle."""
