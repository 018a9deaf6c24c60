"""Ranks of one run: where each is, how they start, talk, stop and watch each other."""
