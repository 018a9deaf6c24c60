"""What a person and a program see of a run: metrics.jsonl (the truth), the console, plots; trackers that mirror it."""
