"""What a training will need and which method suits it, before it is queued."""
