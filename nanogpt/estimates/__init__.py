"""FLOPs, memory and time of a model by formula, without torch."""
