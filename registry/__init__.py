"""The registry: base models, adapters and their versions, aliases, rollouts and serving."""
