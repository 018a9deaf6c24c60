"""OpenAI's API over HTTP, answered by a trained model."""
