"""Shares of rows with their sampling error."""

import math


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, p = 1.96, hits / rows
    middle, half = p + z * z / (2 * rows), z * math.sqrt(p * (1 - p) / rows + z * z / (4 * rows * rows))
    return max(0.0, (middle - half) / (1 + z * z / rows)), min(1.0, (middle + half) / (1 + z * z / rows))
