"""Wire models and task names: all that a caller knows of a service."""
