"""From objects to decoded photos."""
