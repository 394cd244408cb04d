"""A run as others see it: its directory, its report, and the lock that says what decided its result. Imports
no torch and no Hydra.
"""
