"""Checks that what each part of a model makes is finite: no NaN, no infinity.

Pictures of NaN become black, and infinity white, without an error. On a GPU nothing waits for the
check: it reads a tensor once, and its result travels to the host behind the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ltxq.errors import PermanentError
from ltxq_worker.pipeline.decode.transfer import Fetch, Send


class NotFinite(PermanentError):
    """A part of the model made values that are not finite."""

    def __init__(self, part: str) -> None:
        super().__init__(
            f"The {part} made values that are not finite numbers (NaN or infinity).",
            hint="The model's files or the GPU may be damaged: run `ltxq doctor --hashes` on that "
            "machine. If the files are whole, try LTXQ_OPTIMIZE=none there.",
        )


class FiniteCheck:
    """The check of one clip. Parts are noted in the order in which they work, so the first one that
    is not finite is to blame.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._noted: list[tuple[str, Fetch]] = []

    def note(self, part: str, *made: torch.Tensor) -> None:
        """Note what `part` has made."""
        # One pass without temporary tensors; NaN counts as the least and the greatest.
        extremes = [extreme.float() for tensor in made for extreme in torch.aminmax(tensor)]
        self._noted.append((part, self._send(torch.stack(extremes).isfinite().all())))

    @contextmanager
    def watching(self, part: str, module: torch.nn.Module) -> Iterator[None]:
        """Note each output of `module`, a tensor, meanwhile."""
        hook = module.register_forward_hook(lambda _module, _args, made: self.note(part, made))
        try:
            yield
        finally:
            hook.remove()

    def up_to_here(self) -> Callable[[], None]:
        """A function that raises NotFinite if a part noted until now has made such values. It waits
        for their results.
        """
        noted = list(self._noted)

        def check() -> None:
            for part, fetch in noted:
                if not fetch():
                    raise NotFinite(part)

        return check
