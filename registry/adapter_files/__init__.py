"""The files of an adapter: what they may say, checked against the base model. No Django."""
