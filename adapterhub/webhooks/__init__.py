"""Webhooks: signed messages about audit events, with retries."""
