"""Data plane: an OpenAI-compatible router that selects each request's version and a replica that has it loaded."""
