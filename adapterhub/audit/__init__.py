"""The audit trail: events in hash chains, checkpoints, export and verification."""
