"""What intervals, confidences, checks and the report cost a run.

    python -m benchmarks.decision_overhead.run --adapter ADAPTER --images FOLDER [--copies 4]

One run over the photos, each also under `copies` - 1 names with other bytes at their end, so that each is answered by
itself. Timed within it: postprocessing answers, the parsing part of that, comparing with the last run, and the report
with its plots and thumbnails. The ratio is the run over the run without them, in wall time and CPU time.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.results import record
from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import Prompt
from enrich.engines import predictor
from enrich.pipeline.run import enrichment, finish, records
from enrich.pipeline.run.request import RunRequest
from enrich.settings.run import GateSettings, RunSettings

wall: dict[str, float] = defaultdict(float)
cpu: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def measured(*args: Any, **kwargs: Any) -> Any:
        start, spent = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        wall[name] += time.perf_counter() - start
        cpu[name] += time.process_time() - spent
        calls[name] += 1
        return result

    return measured


def parse_only(completion: Any, *args: Any, **kwargs: Any) -> Any:
    """What a run without postprocessing would do with the same completion; then the postprocessing itself."""
    timed("parse alone", _parse)(completion.text, args[0].prompt)
    return timed("postprocess", _postprocess)(completion, *args, **kwargs)


def _parse(text: str, prompt: Prompt) -> None:
    with suppress(AnswerMalformed):
        parse_answer(text, prompt)


_postprocess = predictor.postprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=4)
    arguments = parser.parse_args()
    settings = RunSettings(engine="transformers", shard_size=256, gate=GateSettings(enabled=False))
    with TemporaryDirectory() as scratch:
        bucket = Path(scratch) / "bucket"
        photos = [path for path in sorted(arguments.images.rglob("*")) if path.is_file()]
        for copy in range(arguments.copies):
            for number, path in enumerate(photos):
                target = bucket / str(copy) / f"{number:05}{path.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes() + b"\0" * copy)
        with (
            patch.object(predictor, "postprocess", parse_only),
            patch.object(records, "render_report", timed("report", records.render_report)),
            patch.object(finish, "compare", timed("changes", finish.compare)),
        ):
            request = RunRequest(str(bucket), arguments.adapter, f"{scratch}/output", settings)
            start, spent = time.perf_counter(), time.process_time()
            run = enrichment.run_enrichment(request)
            total, total_cpu = time.perf_counter() - start, time.process_time() - spent
    parts = [{"part": name, "calls": calls[name], "wall s": wall[name], "CPU s": cpu[name]} for name in sorted(calls)]
    added, added_cpu = (sum(spent.values()) - 2 * spent["parse alone"] for spent in (wall, cpu))
    whole = {
        "photos": run.counts["rows"],
        "wall s": total,
        "CPU s of this process": total_cpu,
        "wall time, with / without": round(total / (total - added), 4),
        "CPU time, with / without": round(total_cpu / (total_cpu - added_cpu), 4),
    }
    record("decision_overhead", {"Parts": parts, "Whole run": [whole]})


if __name__ == "__main__":
    main()
