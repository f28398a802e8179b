"""Leased jobs: the state machine that analyses, runs and evaluations share."""
