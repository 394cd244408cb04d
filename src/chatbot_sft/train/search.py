"""Which layouts are worth trying on a CPU, where a trial costs about what a step of the run does. Imports no
torch.

Time goes there by padded tokens and the pairs of them that attention looks at, and by micro-batches. A pair costs
what its products do beside those of a token, or up to DEARER times as much, by how attention is computed. So a layout
takes at least the smallest of its three ratios to a layout that was measured (tokens with cheap pairs, tokens with
dear ones, micro-batches), times what that took, and at most the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chatbot_sft.report.words import amount
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.rows import StepRows

SHARE = 0.05  # of the planned run, for all trials together
MOST = 0.1  # the same for one that can save SEVERAL times what all of them take
SEVERAL = 4
RECOMPUTED = 4 / 3  # forward passes come again, beside a backward pass of twice their work
DEARER = 2  # times: 1.6 were measured, 135M parameters on two cores
CLEARLY_FASTER = 0.97  # timings of one layout differ by about this much; another has to beat it


@dataclass(frozen=True)
class Work:
    """What a step takes time for; tokens are with padding, and with what their pairs cost."""

    least: float  # tokens
    most: float  # tokens, where pairs are DEARER
    micro_batches: float

    def ratios(self, other: Work) -> list[float]:
        mine, others = vars(self).values(), vars(other).values()
        return [a / b for a, b in zip(mine, others, strict=True)]


def work(layout: Layout, step: StepRows, pair: float) -> Work:
    """That of `step` in `layout`; `pair` is what a pair of tokens costs at least, in tokens."""
    tokens = pairs = batches = 0
    for rows in layout.groups(step):
        lengths = [len(row) for row in rows]
        shape = (1, sum(lengths)) if layout.padding_free else (len(lengths), max(lengths))
        tokens += shape[0] * shape[1]
        pairs += shape[0] * shape[1] ** 2
        batches += 1
    times = RECOMPUTED if layout.checkpointing else 1.0
    return Work(times * (tokens + pair * pairs), times * (tokens + DEARER * pair * pairs), times * batches)


@dataclass
class Search:
    """The trials for a run of `steps` steps like `typical`, where a pair of tokens costs as much as `pair` tokens."""

    typical: StepRows
    configured: Layout
    steps: int
    pair: float
    measured: list[tuple[Work, float]] = field(default_factory=list)  # with seconds

    @property
    def warming_up(self) -> StepRows:
        """What is run first, in Layout(1): first calls are slow, and compile what the run needs in any case."""
        return StepRows(self.typical.packs[-1:])

    def add(self, layout: Layout, seconds: float) -> None:
        self.measured.append((self._work(layout), seconds))

    def why_none(self, layouts: Sequence[Layout]) -> str | None:
        """Why nothing is to be tried; None where warming up, what is configured and one more are worth it."""
        alone = self._of_configured()
        others = [layout for layout in layouts if layout != self.configured and alone.can_win(layout)]
        if not others:
            return "no other can be faster"
        if not any(alone.is_worth(layout, 1.0) for layout in others):
            return f"trying others would take too much of {amount(self.steps, 'step')}"
        return None

    def why_not(self, layout: Layout, spent: float) -> str | None:
        """Why `layout` is not tried, where trials have taken `spent` seconds, warming up apart; None where it is."""
        if not self.measured:
            return None
        if not self.can_win(layout):
            return "cannot be faster than one that was measured"
        return None if self.is_worth(layout, spent) else "no time left to measure"

    def can_win(self, layout: Layout) -> bool:
        """Whether it can be clearly faster than the fastest that was measured."""
        return self.at_least(layout) < CLEARLY_FASTER * self.fastest

    def is_worth(self, layout: Layout, spent: float) -> bool:
        """Whether it may be tried after `spent` seconds of trials, by what that takes and what it can save."""
        takes = self._warmed_up + spent + self.at_most(layout)
        saves = (self.fastest - self.at_least(layout)) * self.steps
        share = MOST if saves >= SEVERAL * takes else SHARE
        return takes <= share * self.steps * self.fastest

    def by_promise(self, layouts: Sequence[Layout]) -> list[Layout]:
        """The configured one first, then those that can save the most for what trying them takes."""
        alone = self._of_configured()
        others = [layout for layout in layouts if layout != self.configured]
        others.sort(key=lambda layout: (alone.at_least(layout) - 1) / alone.at_most(layout))
        return [self.configured, *others]

    @property
    def fastest(self) -> float:
        """Seconds, of what was measured."""
        return min(seconds for _, seconds in self.measured)

    def at_least(self, layout: Layout) -> float:
        """Seconds."""
        return max(seconds * min(self._ratios(layout, other)) for other, seconds in self.measured)

    def at_most(self, layout: Layout) -> float:
        """Seconds."""
        return self._at_most(self._work(layout))

    def _of_configured(self) -> Search:
        """The same where what is configured takes a second."""
        alone = Search(self.typical, self.configured, self.steps, self.pair)
        alone.add(self.configured, 1.0)
        return alone

    @property
    def _warmed_up(self) -> float:
        """Seconds that warming up takes at most, compiling apart."""
        return self._at_most(work(Layout(1), self.warming_up, self.pair))

    def _at_most(self, of: Work) -> float:
        return min(seconds * max(of.ratios(other)) for other, seconds in self.measured)

    def _ratios(self, layout: Layout, other: Work) -> list[float]:
        return self._work(layout).ratios(other)

    def _work(self, layout: Layout) -> Work:
        return work(layout, self.typical, self.pair)


def try_layouts(
    search: Search,
    layouts: Sequence[Layout],
    warm_up: Callable[[], object],
    run: Callable[[Layout], float | None],
    clock: Callable[[], float],
) -> dict[Layout, str | None]:
    """Run those of `layouts` that are worth it and put their seconds into `search`: why each of them was not
    run, or None.

    `run` returns the seconds of the typical step; None where the layout does not count, whatever it took.
    """
    warm_up()
    started, why_not = clock(), {}
    for layout in search.by_promise(layouts):
        why_not[layout] = search.why_not(layout, clock() - started)
        if why_not[layout] is None and (seconds := run(layout)) is not None:
            search.add(layout, seconds)
    return {layout: why_not[layout] for layout in layouts}
