"""How many downloads and decoding processes run at a time."""

from dataclasses import dataclass

from enrich.settings.run import RunSettings


@dataclass(frozen=True)
class Workers:
    """How many of a kind work at a time."""

    download: int  # threads
    decode: int  # processes


def choose_workers(settings: RunSettings, cores: int) -> Workers:
    """The workers that `settings` ask for, or where they leave it open what suits a machine of `cores`.

    A decoding process makes 50 to 100 photos a second and takes 60 MB, so two keep up with all but large GPUs; two
    cores are left to the engine and to the process that feeds it. A thread has one photo from its download to the end
    of its decoding: so many more than processes that 16 are left to wait for S3 (30 to 50 ms a photo).
    """
    decode = settings.decode_processes or min(max(cores - 2, 2), 16)
    return Workers(min(settings.download_threads or 16 + decode, settings.in_flight), decode)


def describe_workers(workers: Workers, cores: int) -> str:
    """One line for who starts a run."""
    return f"{workers.download} download threads and {workers.decode} decoding processes on {cores} cores"
