"""Adapters in OCI registries, as artifacts of the ModelPack format."""
