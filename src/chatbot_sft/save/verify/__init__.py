"""Whether an export is the trained model: `compare` judges, by `evidence`, what a `probe` apart saw."""
