"""Which configuration of a sweep, or which of several runs, is best, and why: as a table, a CSV file and a page.

Imports no torch; plotly and optuna where they are installed, as they are needed.
"""
