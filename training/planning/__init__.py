"""Estimates and advice before a training is queued: the resources that it needs and the method that suits it."""
