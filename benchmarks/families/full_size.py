"""Models of all families at full size on one GPU: training compared with a plain Trainer, serving with stock vLLM.

    python -m benchmarks.families.full_size                                   # all families, training and serving
    python -m benchmarks.families.full_size --families gemma4 --parts train    # some of it
    python -m benchmarks.families.full_size --tiny                            # small models on a CPU, to try the script
    python -m benchmarks.families.full_size --families --rows rows.jsonl      # the table of rows from earlier calls

Parts, each in a process of its own, which prints its row as a line of JSON once it has it:

    ours    `enrich finetune` from JPEG files: LoRA on the language model's linears, compiled, batch 16
    plain   stock transformers.Trainer and PEFT with the same adapter: logits everywhere, batch 8; half as many photos
    cached  as ours, two epochs: the vision tower's features are kept in the first and read in the second
    stock   vLLM as shipped: LLM.generate with its own model class, PIL images decoded beforehand
    engine  this project's engine from the bytes of JPEG files, which other processes decode

train is ours and plain, serve is stock and engine. Weights are random: speed does not depend on them. Photos are
1000x1333 JPEGs of the sample generator, all different, with about 750 tokens each; all answers have 32 tokens. Results
of a run: see README.md.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.families.members import SIZES, write_member
from benchmarks.families.parts import measure, photo_tokens
from benchmarks.made_up import make_photos
from benchmarks.results import record
from benchmarks.vllm_serving.measured_engine import warm_up
from benchmarks.vllm_serving.run import engine_environment

PARTS = {"train": ("ours", "plain"), "serve": ("stock", "engine")}


def main() -> None:
    options = _options()
    if options.one:
        print(json.dumps(measure(*options.one.split(), options)), flush=True)
        return
    with _folder(options.folder) as options.folder:
        rows = options.rows or options.folder / "rows.jsonl"
        if options.families:
            make_photos(options.folder / "photos", options.photos + warm_up(options))
        for name in options.families:
            model = options.folder / name
            write_member(name, model, photo_tokens(options), tiny=options.tiny)
            for part in options.parts:
                row = json.dumps(run_alone(name, part, options))
                print(row, flush=True)
                with rows.open("a") as file:
                    file.write(f"{row}\n")
            shutil.rmtree(model)  # up to 15 GB
        found = [json.loads(line) for line in rows.read_text().splitlines()]
    if not options.tiny:
        record("families", tables(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(SIZES), choices=SIZES, metavar="FAMILY")
    parser.add_argument("--parts", nargs="*", default=["train", "serve"], help="train, serve, or single ones")
    parser.add_argument("--photos", type=int, help="how many; 512, or 24 where --tiny")
    parser.add_argument("--workers", type=int, help="decoding processes; by default all cores but three")
    parser.add_argument("--folder", type=Path, help="where photos and models are made; photos that are there stay")
    parser.add_argument("--rows", type=Path, help="file to which rows are added; the table is of all that it then has")
    parser.add_argument("--seconds", type=int, default=300, help="that a part may take before it is ended")
    parser.add_argument(
        "--vllm", nargs="*", default=[], metavar="NAME=JSON",
        help="vLLM's arguments for all that is served, such as attention_backend='\"TRITON_ATTN\"'",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="say in engine's log which kernels took the GPU's time")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script on a CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = [part for given in options.parts for part in PARTS.get(given, (given,))]
    options.photos = options.photos or (24 if options.tiny else 512)
    options.workers = options.workers or max(1, (os.cpu_count() or 4) - 3)
    return options


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def run_alone(name: str, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """A part's row, or its error. What it says otherwise goes to FOLDER/FAMILY-PART.log."""
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    if part in PARTS["serve"]:
        environment = engine_environment(options.folder, stock=part == "stock", tiny=options.tiny)
    command = [sys.executable, "-m", "benchmarks.families.full_size", "--one", f"{name} {part}"]
    command += ["--folder", str(options.folder), "--photos", str(options.photos), "--workers", str(options.workers)]
    command += [f"--{name}" for name in ("tiny", "profile") if getattr(options, name)]
    command += ["--vllm", *options.vllm]
    started, log = time.perf_counter(), options.folder / f"{name}-{part}.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        ) as process,
    ):
        late = threading.Timer(options.seconds, lambda: os.killpg(process.pid, signal.SIGKILL))
        late.start()
        lines = [line for line in process.stdout or () if line.startswith('{"')]  # Trainer prints dictionaries too
        late.cancel()
    row = {"family": name, "part": part, "seconds": time.perf_counter() - started}
    if lines:
        return row | json.loads(lines[-1])
    why = f"ended after {options.seconds} s" if process.wait() == -signal.SIGKILL else "failed"
    return row | {"error": f"{why}: {log.read_text(errors='replace').strip()[-1500:]}"}


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """One row a family, then all that was measured, by part, and what failed. Of a part measured twice, the last."""
    found = {(row["family"], row["part"]): row for row in rows if "error" not in row}
    families = list(dict.fromkeys(row["family"] for row in rows))
    summary = []
    for name in families:
        ours, plain, stock, engine = (found.get((name, part), {}) for part in ("ours", "plain", "stock", "engine"))
        summary.append(
            {
                "model": SIZES[name].published,
                "image tokens": ours.get("image tokens", ""),
                "KV bytes a token": ours.get("KV bytes a token", ""),
                "training photos/s": ours.get("photos a second", ""),
                "MFU": ours.get("MFU", ""),
                "peak GiB": ours.get("peak GiB", ""),
                "plain Trainer": plain.get("photos a second", ""),
                "its MFU": plain.get("MFU", ""),
                "its peak GiB": plain.get("peak GiB", ""),
                "times": _times(ours, plain),
                "serving photos/s": engine.get("photos a second", ""),
                "stock vLLM": stock.get("photos a second", ""),
                "times ": _times(engine, stock),
                "start s": engine.get("start s", ""),
                "stock start s": stock.get("start s", ""),
            }
        )
    named = {"Full size": summary}
    for part in dict.fromkeys(row["part"] for row in rows):
        named[part] = [dict(row) for row in found.values() if row["part"] == part]
    named["Failed"] = [dict(row) for row in rows if "error" in row and (row["family"], row["part"]) not in found]
    return {title: table for title, table in named.items() if table}


def _times(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | str:
    rates = [row.get("photos a second") for row in (one, other)]
    return rates[0] / rates[1] if all(rates) else ""


if __name__ == "__main__":
    main()
