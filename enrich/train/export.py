"""The adapter directory: weights, and everything needed to serve and to trust them."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from peft import PeftModel

from enrich.answers.calibration import CALIBRATION_FILE, Calibration
from enrich.answers.prompt import PROMPT_FILE, Prompt
from enrich.models.checkpoint import TOKENIZER_FILES
from enrich.models.protocols import Processor
from enrich.train.record import TrainReport
from enrich.vocabulary import RECORD_FILE

# Copied from the base. A tokenizer without the accompanying config.json may load as another class, with other ids.
_BASE_FILES = ("config.json", *TOKENIZER_FILES)
_PACKAGES = ("enrich", "torch", "transformers", "peft", "accelerate", "tokenizers", "pillow")


def write_adapter(directory: Path, model: PeftModel, processor: Processor, prompt: Prompt, base: Path) -> None:
    """Write all of the adapter but its train.json into a new `directory`; one that a killed run left is replaced."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
    for name in _BASE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    # Not the base's own file: sizes of photos must be those trained with.
    processor.save(directory)
    (directory / PROMPT_FILE).write_text(prompt.model_dump_json(indent=1) + "\n", "utf-8")


def finish_adapter(directory: Path, target: Path, report: TrainReport) -> None:
    """Add train.json and move the directory to `target`, replacing an older one of the same run.

    After a failed merge check it stays where it is, and can be served unmerged, without error bars.
    """
    (directory / RECORD_FILE).write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    if not report.merge_check.ok:
        (directory / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json(indent=1) + "\n", "utf-8")
        return
    if target.exists():
        shutil.rmtree(target)
    directory.rename(target)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the result."""
    return {package: version(package) for package in _PACKAGES}


def commit() -> str | None:
    """The last commit that touched this package, where it is run from a git checkout."""
    package = Path(__file__).parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(package), "log", "-1", "--format=%H", "--", "."],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
