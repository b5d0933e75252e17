"""The errors a user meets. Each message is one line: what, where, and what to do next; each carries its exit code."""

from enrich.schema import ErrorKind


class EnrichError(Exception):
    """Something the user can act on. `exit_code` is the command's exit status."""

    exit_code = 1


class UsageError(EnrichError):
    """Wrong arguments, settings or input: nothing was started and nothing was written."""

    exit_code = 2


class RunFailed(EnrichError):
    """The run began and could not finish; what it committed stays, and the same run id continues it."""

    exit_code = 1


class ParityFailed(RunFailed):
    """The engine does not serve the model that was trained. Trying again finds the same."""


class HeldBack(EnrichError):
    """The work is done, but its result is not good enough to use without a person's word: the publish gate kept
    products.parquet as it was, or a fine-tuned adapter is no better than guessing."""

    exit_code = 3


class ImageError(EnrichError):
    """What befell one image. `kind` is what a row says about it."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)  # both, so that it survives pickling
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])
