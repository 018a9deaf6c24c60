"""Whether this machine can do what is asked of it, and whether what must hold of every training holds on it."""
