"""The network: GPT, its layers, the loss, and the KV cache."""
