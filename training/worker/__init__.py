"""The GPU worker: its queue, supervision of a job's process, and retention of checkpoints."""
