"""What the router reports: outcomes, samples for the judge, metrics, traces, logs."""
