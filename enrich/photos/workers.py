"""How many downloads and decoding processes run at a time."""

from dataclasses import dataclass

from enrich.settings.run import RunSettings


@dataclass(frozen=True)
class Workers:
    """Numbers of concurrent workers."""

    download: int  # threads
    decode: int  # processes


def choose_workers(settings: RunSettings, cores: int) -> Workers:
    """The workers of `settings`, or a choice for a machine of `cores` where the settings leave it open.

    A decoding process decodes 50 to 100 photos a second in about 50 MB, so two are enough for all but large GPUs. Two
    cores are left to the engine and the process that feeds it. A thread handles one photo from its download to the end
    of its decoding; with 16 threads more than processes, 16 can wait for S3 (30 to 50 ms a photo).
    """
    decode = settings.decode_processes or min(max(cores - 2, 2), 16)
    return Workers(min(settings.download_threads or 16 + decode, settings.in_flight), decode)


def describe_workers(workers: Workers, cores: int) -> str:
    """The workers in one line, for the log of a run."""
    return f"{workers.download} download threads and {workers.decode} decoding processes on {cores} cores"
