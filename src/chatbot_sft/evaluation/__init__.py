"""Golden answers: questions of a team's own, what is expected of the answers, and which model gives them.

`cases` (the file) · `checks` (one each) · `answer` (who is asked, and what was answered) · `server` (any that is
OpenAI-compatible) · `judge` · `compare` · `report` (evaluation.json) · `table` and `page` (for people) · `task`
(all of it).
"""
