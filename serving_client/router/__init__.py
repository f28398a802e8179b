"""The data plane: an OpenAI-compatible process that knows which version a request gets, and where it is loaded."""
