"""Integrations with other systems that receive ended runs."""
