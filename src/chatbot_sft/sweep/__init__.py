"""Sweeps: which jobs there are, who runs which, what became of each."""
