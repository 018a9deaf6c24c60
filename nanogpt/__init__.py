"""nanogpt-lab: train GPTs. See README.md for the tree; nothing is imported here, so that every part loads alone."""
