"""The training loop that the recipes share: batches, trainer, checkpoints, distribution."""
