"""Rollouts while they run: their control loop, the outcomes that routers report, and the judge of answers."""
