"""Integrations with other systems that receive runs' metrics."""
