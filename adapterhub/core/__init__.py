"""What every app of the project builds on. No models."""
