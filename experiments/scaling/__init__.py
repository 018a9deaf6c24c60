"""Scaling laws: published ones, and fits to finished runs."""
