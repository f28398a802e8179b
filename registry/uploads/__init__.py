"""Adapters that come from outside, and their verification."""
