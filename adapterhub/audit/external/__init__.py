"""The trail outside this installation: witnesses that keep its checkpoints, the proof that they give, and a SIEM."""
