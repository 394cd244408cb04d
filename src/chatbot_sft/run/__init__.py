"""A run as others see it: its directory, its report, and its lock. Imports no torch and no Hydra."""
