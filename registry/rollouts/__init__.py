"""Operation of running rollouts: their control loop, the outcomes that routers report, and the judge of answers."""
