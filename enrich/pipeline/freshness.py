"""A dead-man's switch: whether an output was published to recently, told by the output alone."""

from datetime import UTC, datetime, timedelta
from itertools import islice

from enrich.errors import RunFailed
from enrich.output.run_record import RunRecord, claims, find_record, read_record_of
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage import Store, open_store

# Runs looked at, the newest first: a few, since one that started earlier may have ended later. A listing of the
# sequence (1,000 runs a request on S3) and two small objects for each: thousands of runs take no longer than ten.
LOOKED_AT = 10
SKEW = timedelta(minutes=5)  # by which clocks of machines may differ


def check_fresh(output: str, newer_than: timedelta, s3: S3Settings = PLAIN_S3, now: datetime | None = None) -> str:
    """One line about the run that published last. A run with nothing to do counts, a held one does not.

    Nor does a run that ended in time to come: one night with a wrong clock would keep the switch quiet until then.

    Raises:
        RunFailed: it ended longer ago than `newer_than`, or no run has published there.
    """
    now = now or datetime.now(UTC)
    last, held, ahead = _last(open_store(output, s3=s3), now + SKEW)
    hint = f"; run {held.run.run_id}, {_ago(now, held)} ago, is held back: look at its report" if held else ""
    if ahead:
        hint += f"; run {ahead.run.run_id} ended {_words(ahead.finished_at - now)} from now by the clock of host "
        hint += f"{ahead.host}: set that clock, or this one's"
    advice = hint or "; see the log of the last nightly run, and `enrich doctor --prefect`"
    if last is None:
        raise RunFailed(f"output {output}: no run has published{advice}")
    told = f"run {last.run.run_id} ended {_ago(now, last)} ago"
    if now - last.finished_at > newer_than:
        raise RunFailed(
            f"output {output}: {told}, more than {_words(newer_than)}, and none has published since{advice}"
        )
    return f"output {output}: {told}"


def _last(output: Store, now: datetime) -> tuple[RunRecord | None, RunRecord | None, RunRecord | None]:
    """The run that published last, the last one that was held back since, and one that ended after `now`."""
    runs = [output.get(key)[0].decode() for key in islice(claims(output).values(), LOOKED_AT)]
    records = [record for run_id in dict.fromkeys(runs) if (record := read_record_of(output, run_id))]
    records.sort(key=lambda record: record.finished_at, reverse=True)
    ahead = next((record for record in records if record.finished_at > now), None)
    past = [record for record in records if record.finished_at <= now]
    published = next((record for record in past if record.state != "held"), None)
    if published is None:  # many that were killed or held back in a row, or from before sequences were introduced
        published = find_record(output, lambda record: record.state != "held" and record.finished_at <= now)
    held = past[0] if past and past[0].state == "held" else None
    return published, held, ahead


def _ago(now: datetime, record: RunRecord) -> str:
    return _words(max(now - record.finished_at, timedelta(0)))


def _words(time: timedelta) -> str:
    """30h, 2d 6h, 40m: two units at most."""
    minutes = round(time.total_seconds() / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours = round(minutes / 60)
    return f"{hours}h" if hours < 48 else f"{hours // 24}d" + (f" {hours % 24}h" if hours % 24 else "")
