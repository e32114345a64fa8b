"""Show how far a stage is: time left, images per second and peak memory, in one line."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import torch
from tqdm import tqdm

from ltdd.engine.machine.memory import peak_bytes
from ltdd.engine.machine.surroundings import shown_on_terminal
from ltdd.engine.watching import units

_REFRESH = 0.5  # seconds between two looks at the figures behind the bar
_LINE_EVERY = 10  # seconds between two plain lines
_SILENT = 2  # seconds in which nothing is shown at all


class Progress:
    """A tqdm bar on a terminal, a plain line every ten seconds elsewhere, none in the first two.

    Args:
        total: number of steps.
        label: what is done.
        quiet: show nothing.
        done: steps that an earlier process took.
        device: whose memory is watched.
    """

    def __init__(
        self,
        total: int,
        label: str,
        quiet: bool,
        done: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self._total, self._label, self._restored = total, label, done
        self._device = device or torch.device("cpu")
        self._terminal = shown_on_terminal()
        self._plain = not quiet and not self._terminal
        self._start = self._last = time.monotonic()
        self._done, self._images, self._note = done, 0, ""
        hidden = quiet or not self._terminal
        self._bar = tqdm(total=total, initial=done, desc=label, delay=_SILENT, disable=hidden)

    def step(self, note: str = "", images: int = 0) -> None:
        """Count one step.

        Args:
            note: shown behind the bar.
            images: number of images the step worked on.
        """
        self._done, self._images, self._note = self._done + 1, self._images + images, note
        now = time.monotonic()
        if self._terminal and (now - self._last >= _REFRESH or self._done == self._total):
            self._last = now
            self._bar.set_postfix_str(", ".join(self._figures(now)), refresh=False)
        self._bar.update()
        if self._plain and now - self._last >= _LINE_EVERY:
            self._last = now
            pace = (now - self._start) / (self._done - self._restored)
            left = units.duration(pace * (self._total - self._done))
            figures = [f"{self._done}/{self._total}", *self._figures(now), f"{left} left"]
            print(f"{self._label}: {', '.join(figures)}", file=sys.stderr, flush=True)

    def _figures(self, now: float) -> list[str]:
        """Return the note, images per second since the start, and peak memory."""
        figures = [self._note] if self._note else []
        if self._images:
            figures.append(f"{self._images / max(now - self._start, 1e-9):,.0f} images/s")
        return [*figures, f"peak {units.size(peak_bytes(self._device))}"]

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        now = time.monotonic()
        if self._plain and now - self._start > _SILENT and kind is None:
            figures = [f"done in {units.duration(now - self._start)}", *self._figures(now)]
            print(f"{self._label}: {', '.join(figures)}", file=sys.stderr, flush=True)
