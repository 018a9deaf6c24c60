"""Commands about studies, runs and sizes. Only `coordinates` trains, for a few steps, and imports torch."""
