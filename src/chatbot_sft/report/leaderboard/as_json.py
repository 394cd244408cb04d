"""A comparison for programs: the rows of the table, all jobs in them, what differs between two runs."""

from __future__ import annotations

from typing import Any

from chatbot_sft.report.leaderboard import differences
from chatbot_sft.report.leaderboard.board import Board
from chatbot_sft.report.leaderboard.job import Job


def values(board: Board, two_runs: bool) -> dict[str, Any]:
    """The best row first, and in each row the best job, as in the table; losses in nats per token, times in seconds,
    memory in GB. `differences` is of two runs alone, `sweep` of a job where those of several sweeps are compared.
    """
    return {
        "title": board.title,
        "metric": board.metric,
        "direction": "maximise" if board.maximise else "minimise",
        "keys": board.keys,
        "rows": [
            {
                "rank": rank,
                "name": row.name,
                "status": row.status,
                "mean": row.mean,
                "spread": row.spread,
                "jobs": [_job(job) for job in row.jobs],
            }
            for rank, row in enumerate(board.rows, 1)
        ],
        "notes": board.notes,
        "differences": differences.values(*board.jobs) if two_runs else None,
        "error": board.fault or None,
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "sweep": str(job.sweep) if job.sweep else None,
        "number": job.own_number,
        "name": job.name,
        "folder": str(job.folder),
        "settings": dict(job.settings),
        "status": str(job.status),
        "error": job.error or None,
        "value": job.value,
        "held_out_loss": job.held_out,
        "steps": job.steps,
        "tokens_per_second": job.tokens_per_second,
        "peak_gb": job.peak_gb,
        "seconds": job.seconds,
    }
