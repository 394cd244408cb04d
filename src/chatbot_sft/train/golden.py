"""`training.golden_steps`: the golden cases put to the model as it trains; before, every so many steps, and after."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from chatbot_sft.config.schema import PASSED
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import cases as golden
from chatbot_sft.evaluation.answer import Local, Prompt
from chatbot_sft.evaluation.compare import compared
from chatbot_sft.evaluation.grade import graded
from chatbot_sft.inference.hf_model import HFModel
from chatbot_sft.run.report import Evaluation
from chatbot_sft.train.loop import write_log
from chatbot_sft.train.randomness import undisturbed

if TYPE_CHECKING:
    from chatbot_sft.train.session import Session

log = logging.getLogger(__name__)


class Golden(TrainerCallback):
    """Asks the first process's model. The training goes on as if nothing had been asked.

    What a checkpoint's history has of it is not asked again; but which cases passed is known of this start alone.
    """

    def __init__(self, session: Session, system_prompt: str | None) -> None:
        settings = session.settings
        if session.loop != "native" or session.step.sharded:
            raise UserError(
                "training.golden_steps: the native loop alone evaluates golden answers, and not with"
                " training.shard=true; leave it out, and put the trained model to task=evaluate"
            )
        self.session = session
        self.system_prompt = system_prompt
        self.every = int(settings.training.golden_steps or 0)
        self.cases = golden.read(Path(str(settings.evaluation.golden)))
        self.passed: dict[int, list[bool | None]] = {}  # of the steps of this start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.ask(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.ask(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights may be other ones than those of the last step: training.load_best_model_at_end."""
        self.ask(state)

    def ask(self, state: Any) -> None:
        session, asked = self.session, self.session.settings.evaluation
        if session.args.process_index != 0:
            return
        session.engine.for_inference(session.model)
        with session.step.inference(), undisturbed():
            model = HFModel(
                session.model,
                session.tokenizer,
                f"step {state.global_step}",
                session.settings.dataset.chat_template_kwargs,
            )
            local = Local(model, asked.max_new_tokens, asked.batch_size)
            answers = local.answers([self._prompt(case) for case in self.cases], Nothing(), _unheard)
        if session.plan is not None:
            session.step.use_layout(session.step.layout)
        passed = [graded(case, answer).passed for case, answer in zip(self.cases, answers, strict=True)]
        self.passed[state.global_step] = passed
        log.info("step %d: %d of %d golden cases passed", state.global_step, passed.count(True), len(passed))
        session.job.passed = session.job.progress.passed = passed.count(True) / len(passed)
        write_log(session.job, {PASSED: session.job.passed})

    def summary(self) -> Evaluation | None:
        """For the report; None where this start asked nothing."""
        if not self.passed:
            return None
        shares = {entry["step"]: entry[PASSED] for entry in self.session.state.log_history if PASSED in entry}
        last = self.passed[max(self.passed)]
        before = self.passed.get(0)
        return Evaluation(
            golden=str(self.session.settings.evaluation.golden),
            model=self.session.settings.model.name,
            cases=len(last),
            passed=last.count(True) / len(last),
            unjudged=last.count(None),
            before=shares.get(0),
            comparisons={"before": asdict(compared(before, last))} if before else {},
            steps=[{"step": step, "passed": share} for step, share in shares.items()],
        )

    def _prompt(self, case: golden.Case) -> Prompt:
        return Prompt(case.row, golden.opened(case, self.system_prompt))


class Nothing:
    """Keeps no answer: the model is another one at each step."""

    def get(self, prompt: Prompt) -> None:
        return None

    def put(self, prompt: Prompt, answer: Any) -> None:
        pass


def _unheard(count: int) -> None:
    pass
