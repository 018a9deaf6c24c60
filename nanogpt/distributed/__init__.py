"""The ranks of a run: environment, start, rendezvous, collectives, signals and watchdog."""
