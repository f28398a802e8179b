"""Reporting of the router: outcomes, samples for the judge, metrics, traces and logs."""
