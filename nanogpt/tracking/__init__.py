"""Trackers, which copy metrics.jsonl to W&B, TensorBoard and Trackio; the identity of runs; plots."""
