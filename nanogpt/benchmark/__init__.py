"""Benchmarks of training steps, generation, checkpoints and start-up, alone and against other programs."""
