"""Weights and tokenizers that come from other programs, or go to them: OpenAI's, Hugging Face's, nanoGPT's."""
