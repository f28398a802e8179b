"""The race: candidates of kinds, ranks, start values and rates, trained side by side and judged on held-out rows."""
