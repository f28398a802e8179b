"""The gpu worker: its queue, the supervision of a job's process, and the checkpoints that it keeps."""
