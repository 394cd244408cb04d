"""What is left of a run for people and programs: report.json, report.md, loss.png."""
