"""Whether an export is the trained model: `compare` judges, by `evidence`, what a `probe` in a process of its
own saw.
"""
