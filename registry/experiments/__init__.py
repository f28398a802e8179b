"""The statistics of a rollout: metrics, guardrails and always-valid intervals. Pure."""
