"""The training step, its state, losses, checkpoints and logs."""
