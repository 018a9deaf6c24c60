"""How weights change: parameter groups, the optimizer, the learning rate."""
