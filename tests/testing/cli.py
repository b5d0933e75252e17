"""The type of the fixture `run_cli`."""

from collections.abc import Callable

RunCli = Callable[..., tuple[int, str, str]]
