"""A throw-away Slurm to try launch configs on; nothing else of the project needs it."""
