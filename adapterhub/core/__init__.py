"""The foundation that every app of the project builds on: errors, tenancy, tokens, signals. No models."""
