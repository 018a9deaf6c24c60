"""From text to batches: corpora -> prepare -> shards -> sampler -> batches."""
