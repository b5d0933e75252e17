"""How long a run with vLLM takes to its first rows: of a new adapter, again, and of another adapter of the same base.

    python -m benchmarks.start.run                      # full size, on a GPU
    python -m benchmarks.start.run --old CHECKOUT       # then the code of another commit, from `git worktree add`
    python -m benchmarks.start.run --starts first second --old CHECKOUT --only-old    # the parts for themselves
    python -m benchmarks.start.run --tiny               # a small model on a CPU, to try the script

Each start is a process of its own, `enrich.run` over new photos of one output, and the clock runs from the process to
its first shard in history/. The first start finds empty caches: it merges, asks transformers, compiles. The second one
finds the same adapter, the third one another adapter of the base. Checkpoint and photos are made up and in the page
cache. Results: see README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STARTS = {"first": "shop", "second": "shop", "another adapter": "other"}  # and the adapter of each
PHOTOS = 64  # a start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="a checkout of another commit")
    parser.add_argument("--only-old", action="store_true", help="not this one's")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="in this order")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/enrich-start"), help="for 50 GB of files")
    parser.add_argument("--one", nargs=2, metavar=("ADAPTER", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run(options)
        return
    from benchmarks.made_up import FULL, SMALLEST, make_checkpoint, make_photos
    from benchmarks.results import record

    make_photos(options.folder / "photos", PHOTOS * len(STARTS))
    make_checkpoint(options.folder / "model", SMALLEST if options.tiny else FULL)
    for number, name in enumerate(dict.fromkeys(STARTS.values())):
        made = (
            f"from benchmarks.start.run import make_adapter; make_adapter({str(options.folder)!r}, {name!r}, {number})"
        )
        if start(ROOT, options, "-c", made).wait():
            raise SystemExit(f"adapter {name} was not made")
    codes = {} if options.only_old else {"this": ROOT}
    if options.old:
        codes["old"] = options.old.absolute()
    seconds, rows, phases = dict[tuple[str, str], float](), [], []
    for code, checkout in codes.items():
        for part in ("output", "cache"):
            shutil.rmtree(options.folder / f"{part}-{code}", ignore_errors=True)
        for name in options.starts:
            seconds[code, name] = measure(checkout, options, code, STARTS[name])
            phases += told(options.folder / f"output-{code}", code, name)
        shutil.rmtree(options.folder / f"cache-{code}")
    for (code, name), took in seconds.items():
        beside = {"of this code's": took / seconds["this", name]} if ("this", name) in seconds else {}
        rows.append({"code": code, "start": name, "to the first rows, s": took, **beside})
    record("start", {"": rows, "phases": phases})


def measure(checkout: Path, options: argparse.Namespace, code: str, adapter: str) -> float:
    """Seconds from the start of a process to its first shard."""
    os.sync()  # else its first commits wait until the disk has the gigabytes that were written before
    history, began = options.folder / f"output-{code}" / "history", time.perf_counter()
    before = len(list(history.rglob("shard-*.parquet")))
    process = start(checkout, options, __file__, "--one", adapter, code, "--folder", str(options.folder))
    took = None
    while process.poll() is None:
        if took is None and len(list(history.rglob("shard-*.parquet"))) > before:
            took = time.perf_counter() - began
        time.sleep(0.05)
    if process.returncode or took is None:
        raise SystemExit(f"{code} with adapter {adapter}: exit code {process.returncode}")
    print(f"{code}, {adapter}: {took:.1f} s", flush=True)
    return took


def start(checkout: Path, options: argparse.Namespace, *command: str) -> subprocess.Popen[bytes]:
    """A process that runs the code of a checkout, installed or not."""
    from benchmarks.vllm_serving.run import PLUGIN, plugin_environment

    environment = plugin_environment(options.folder / "plugin", PLUGIN, checkout) | {"TQDM_DISABLE": "1"}
    flags = ["--tiny"] if options.tiny and "--one" in command else []
    return subprocess.Popen([sys.executable, *command, *flags], env=environment, cwd=checkout)


def run(options: argparse.Namespace) -> None:
    """The next photos, with the code that is on the path."""
    adapter, code = options.one
    cache = options.folder / f"cache-{code}"
    os.environ["ENRICH_CACHE"] = str(cache)
    if code == "old":  # which leaves these where they are, full or empty
        kept = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        os.environ.update({name: str(cache / "compiled" / folder) for name, folder in kept.items()})
    import enrich

    settings: dict[str, Any] = {"engine": "vllm", "shard_size": 16, "refresh": 0, "gate": {"enabled": False}}
    if options.tiny:
        settings |= {"device": "cpu", "vllm": {"max_num_seqs": 8}}
    places = options.folder / "photos", options.folder / f"adapter-{adapter}", options.folder / f"output-{code}"
    photos = PHOTOS // 4 if options.tiny else PHOTOS
    enrich.run(*places, settings, limit=photos, on_message=lambda line: print(f"  {line}", flush=True))


def told(output: Path, code: str, start: str) -> list[dict[str, Any]]:
    """The phases that the newest run.json names; earlier commits have none."""
    newest = max(output.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime)
    found = json.loads(newest.read_text()).get("start") or {"phases": []}
    rows = []
    for phase in found["phases"]:
        parts = ", ".join(f"{name} {took:.1f}" for name, took in phase["parts"].items())
        times = {"from, s": phase["began"], "to, s": phase["ended"], "seconds": phase["ended"] - phase["began"]}
        rows.append({"code": code, "start": start, "phase": phase["name"], **times, "parts": parts})
    return rows


def make_adapter(folder: str, name: str, seed: int) -> None:
    """A LoRA adapter that changes every weight of the language model a little, and no answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks.made_up import prompt
    from enrich.answers.calibration import CALIBRATION_FILE, Calibration
    from enrich.models.checkpoint import load_model, load_processor
    from enrich.train.export import write_adapter
    from enrich.vocabulary import RECORD_FILE

    base, path = Path(folder, "model"), Path(folder, f"adapter-{name}")
    if path.exists():
        return
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(base, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(std=1e-4)
    write_adapter(path, adapted, load_processor(base), prompt(), base)
    (path / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json())
    (path / RECORD_FILE).write_text("{}")


if __name__ == "__main__":
    main()
