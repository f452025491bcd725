"""How far a download is, for those who ask: what huggingface_hub takes for a progress bar."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int], None]


class Heard:
    """Reports, and knows when something last came."""

    def __init__(self, report: Report):
        self.report, self.last = report, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.last = time.monotonic()
        self.report(done, total)


def bar_class(report: Report) -> Any:
    """A class of tqdm's kind that shows nothing and reports."""
    from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            self.sink = open(os.devnull, "w")  # noqa: SIM115 (closed with the bar)
            super().__init__(*arguments, **options | {"file": self.sink, "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                report(int(min(self.n, self.total)), int(self.total))
            return shown

        def close(self) -> None:
            super().close()
            self.sink.close()

    return Silent
