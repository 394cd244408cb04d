"""What the model answers to some questions, before, while and after it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot_sft.data.personal.detector import Detector
from chatbot_sft.model.generate import as_text, greedy_answer

if TYPE_CHECKING:
    from chatbot_sft.config import Config


def sample_answers(
    model: Any, tokenizer: Any, settings: Config, prompts: list[list[dict[str, Any]]], step: int
) -> list[dict[str, str]]:
    """The greedy answer to each of `prompts` (messages that end with a question) at this `step`; personal data
    that the model has learned stand in it as placeholders.
    """
    from chatbot_sft.train.evaluation import Part

    limit, kwargs = settings.training.sample_max_new_tokens, settings.dataset.chat_template_kwargs
    detector = Detector.of(settings.dataset)
    part, samples = Part(f"step {step}: sample answers", len(prompts)), []
    for prompt in prompts:
        answer = as_text(tokenizer, greedy_answer(model, tokenizer, prompt, limit, **kwargs))
        question = prompt[-1]["content"]
        shown = detector.clean(answer, f"{question}\n{answer}") if detector else answer
        samples.append({"prompt": question, "answer": shown})
        part.advance()
    return samples
