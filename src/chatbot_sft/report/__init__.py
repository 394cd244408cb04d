"""What a run says and leaves behind: report.json, report.md, loss.png, loggers and the terminal's tables,
without secrets and control sequences."""
