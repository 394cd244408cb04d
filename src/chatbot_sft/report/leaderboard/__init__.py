"""Which configuration of a sweep, or which of several runs, is best, and why: as a table, a CSV file and a page.

Imports no torch; plotly where charts are drawn, optuna where it is installed.
"""
