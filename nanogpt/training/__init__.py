"""Training: the state, one step, the loop, and the run around it."""
