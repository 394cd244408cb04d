"""A run that can be repeated: `evidence` gathers what explains it, into its lock; `task=replay` finds it again
(`earlier`, `places`), says what is different here (`changes`), trains it as it was (`again`), and holds the two
against each other (`comparison`, `adapters`).
"""
