"""The training loop that the recipes share: batches, trainer, checkpoints and distribution."""
