"""Stop a run by itself, between two shards, so that it publishes complete ones."""

import math
import time
from dataclasses import dataclass


@dataclass
class Deadline:
    """Start a shard only if one as slow as the last would finish by `until`."""

    until: float = math.inf  # of time.monotonic()
    last: float = 0.0  # seconds that the last shard took

    @staticmethod
    def after(seconds: float | None) -> "Deadline":
        """That many seconds from now; None: never."""
        return Deadline(time.monotonic() + (math.inf if seconds is None else seconds))

    def passed(self) -> bool:
        """Whether no more shards should be started."""
        return time.monotonic() + self.last > self.until
