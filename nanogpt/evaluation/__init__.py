"""Evaluation of models: loss and bits per byte on fixed windows, and benchmarks."""
