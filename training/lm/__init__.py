"""What every program on a language model needs: loading, rows as tokens, loss, events, errors. No Django."""
