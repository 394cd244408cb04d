"""Files that are written while the training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Writing:
    """One piece of writing at a time, in a thread of its own. What it raises is raised where it is waited for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Have `write` called. It neither logs nor looks at what the training changes."""
        self.end()

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def end(self) -> None:
        """Wait until all is written, and raise what that raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end_quietly(self) -> None:
        """`end`, where something else is about to be raised: what this raises is a warning."""
        try:
            self.end()
        except Exception as error:
            log.warning("%s", error)
