"""What a server made of a run's prompts, held against what the trained model made of them.

Arithmetic on what `ask` brought; nothing is asked here. A difference counts where it cannot be the noise of the
format that is served; it then has a likely cause, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatbot_sft.save.verify.kept import TrainedAnswers
from chatbot_sft.served.answers import compare_all, judge_answers, judge_ends
from chatbot_sft.served.ask import Observed
from chatbot_sft.served.finding import Format, Judgement
from chatbot_sft.served.probabilities import judge_probabilities
from chatbot_sft.served.prompts import judge_prompts, judge_system_prompt


def judge(kept: TrainedAnswers, observed: Observed, served: Format, others: Sequence[str] = ()) -> Judgement:
    """`others` are the models that the server has beside the one that was asked.

    What follows from another prompt is no finding of its own.
    """
    found = Judgement(served)
    judge_prompts(kept, observed, found)
    arrived = not found.deciding
    if arrived:
        judge_system_prompt(kept, observed, found)
    compared = compare_all(kept, observed.replies)
    judge_answers(kept, observed, compared, found, others)
    judge_ends(kept, compared, found)
    if arrived:
        judge_probabilities(kept, compared, found)
    return found
