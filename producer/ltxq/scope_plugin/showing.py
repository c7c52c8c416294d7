"""A clip while it is played, and its decoded frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ltxq.job import VideoRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltxq.scope_plugin.clip import DownloadedClip

    Picture = NDArray[np.uint8]  # [H, W, 3], RGB
    Sound = NDArray[np.float32]  # [2, S] in −1..1, 48 kHz


@dataclass(eq=False)
class Showing:
    """A clip being played once. The decoder sets its rate and its sound."""

    clip: DownloadedClip
    request: VideoRequest
    rate: Fraction = Fraction(24)  # frames per second
    sound: Sound | None = None  # None: silent
    heard: int = 0  # samples of it that Scope has
    begun: bool = False  # Scope has its first frame
    dropped: bool = False  # not to be played any further

    def next_sound(self, samples: int) -> Sound | None:
        """The sound of the next frame: `samples` of it, or what is left; None: silent."""
        start, self.heard = self.heard, self.heard + samples
        return None if self.sound is None else self.sound[:, start : self.heard]


@dataclass(frozen=True)
class Frame:
    """A decoded picture of a showing."""

    showing: Showing
    picture: Picture


@dataclass(frozen=True)
class End:
    """After a showing's last frame."""

    showing: Showing
