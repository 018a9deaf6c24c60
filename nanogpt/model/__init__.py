"""The network: assembly, attention, layers, the cache for decoding, and what it costs."""
