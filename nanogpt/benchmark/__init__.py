"""What this machine does: the training step, generation, checkpoints, start-up; alone and against other programs."""
