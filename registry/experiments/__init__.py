"""Statistics of a rollout: metrics, guardrails and always-valid confidence intervals. Pure."""
