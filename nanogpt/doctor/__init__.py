"""`nanogpt doctor`: checks of this machine, and of properties that every training must have on it."""
