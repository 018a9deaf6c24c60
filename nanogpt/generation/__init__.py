"""Text from a trained model: decoding, answers, and the sample command."""
