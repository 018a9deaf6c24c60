"""The configuration: YAML groups a person reads, and the one place where Hydra ends and typed config begins."""
