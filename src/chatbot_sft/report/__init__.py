"""What a run says and leaves behind: report.md, loss.png, loggers and the terminal's tables, without secrets."""
