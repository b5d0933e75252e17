"""Build a target of the Dockerfile and run it as user 10001 on a read-only root: sizes, times, what works.

    python -m benchmarks.container.run --target gpu --work /var/tmp/container      # as root

Needs Debian's buildah, podman and debootstrap, and a package index. A Debian 12 made by debootstrap, with its Python
3.11, stands in for python:3.11-slim-bookworm, so no image registry is needed. /opt/venv is a folder in --work instead
of a layer: the gpu target has 10 GB of packages, and a commit would copy them.
"""

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.results import PACKAGES, ROOT, record

BASE = "localhost/python:3.11-debian-bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
IMPORTS = {"cpu": "torch, prefect, enrich", "gpu": "torch, triton, vllm, xgrammar, ray, prefect, enrich"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=sorted(IMPORTS), required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for base, environment and data; up to 15 GB")
    parser.add_argument("--torch-index", default="", help="an index with CPU builds of torch, for the cpu target")
    parser.add_argument("--demo", action="store_true", help="run the whole demo in it: ten minutes or more")
    arguments = parser.parse_args()
    work, image = arguments.work.resolve(), f"localhost/enrich:{arguments.target}"
    venv, data = work / f"venv-{arguments.target}", work / f"data-{arguments.target}"
    for folder in (venv, data):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    os.chown(data, 10001, 10001)

    steps = [_timed("base, by debootstrap", lambda: _make_base(work / "base"))]
    build = ["buildah", "build", "--isolation", "chroot", "--no-cache", "--pull-never", "--target", arguments.target,
             "--from", BASE, "--volume", f"{venv}:/opt/venv", "--build-arg", f"TORCH_INDEX={arguments.torch_index}",
             "--tag", image, "."]  # fmt: skip
    steps.append(_timed("build", lambda: _call(build, work / "build.log")))
    inside = ["podman", "run", "--rm", "--pull", "never", "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp",
              "--cap-drop", "all", "--security-opt", "no-new-privileges", "--volume", f"{venv}:/opt/venv:ro",
              "--volume", f"{data}:/data", image]  # fmt: skip
    commands = {
        "imports": ["python", "-c", f"import {IMPORTS[arguments.target]}"],
        "enrich doctor": ["enrich", "doctor"],
        **({"python -m flows.demo": ["python", "-m", "flows.demo"]} if arguments.demo else {}),
    }
    for name, command in commands.items():
        log = work / f"{name.replace(' ', '-')}.log"
        steps.append(_timed(name, lambda command=command, log=log: _call([*inside, *command], log)))
    left = sorted(path.name for path in data.iterdir())
    record("container", {
        f"Target {arguments.target}, size": _sizes(image, venv),
        "Versions in it": _versions(venv),
        "Largest packages": _packages(venv),
        "Steps; in the image as user 10001, without capabilities, root read-only": steps,
        "Written below /data": [{"names": ", ".join(left)}],
    })  # fmt: skip


def _make_base(folder: Path) -> int:
    """A Debian 12 with Python, as an image; kept for the next run."""
    if subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True).returncode == 0:
        return 0
    packages = "python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder], check=True)
    (folder / "usr/bin/python").symlink_to("python3")
    shutil.copyfile(CERTIFICATES, folder / CERTIFICATES[1:])  # the host's; pip has to be told of them
    made = subprocess.check_output(["buildah", "from", "scratch"], text=True).strip()
    subprocess.run(["buildah", "copy", "--quiet", made, folder, "/"], check=True)
    variables = ["PATH=/usr/bin:/bin:/usr/sbin:/sbin", f"PIP_CERT={CERTIFICATES}", "PIP_NO_CACHE_DIR=1"]
    subprocess.run(["buildah", "config", *(word for each in variables for word in ("--env", each)), made], check=True)
    return subprocess.run(["buildah", "commit", "--quiet", "--rm", made, BASE]).returncode


def _timed(name: str, work: Any) -> dict[str, Any]:
    start = time.monotonic()
    code = work()
    return {"step": name, "seconds": round(time.monotonic() - start), "exit code": code}


def _call(command: Sequence[str], log: Path) -> int:
    with log.open("wb") as file:
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode


def _sizes(image: str, venv: Path) -> list[dict[str, Any]]:
    layers = subprocess.run(
        ["podman", "image", "inspect", "--format", "{{.Size}}", image], capture_output=True, text=True
    ).stdout.strip()
    return [
        {"part": "Debian, Python, fonts, compiler", "MB": int(layers or 0) // 10**6},
        {"part": "/opt/venv", "MB": _megabytes(venv)},
    ]


def _versions(venv: Path) -> list[dict[str, Any]]:
    """What the image has; the record's own versions are of the Python that runs this."""
    [packages] = venv.glob("lib/python3*/site-packages")
    found = {each.name: each.version for each in distributions(path=[str(packages)])}
    return [{"package": name, "version": found[name]} for name in PACKAGES if name in found]


def _packages(venv: Path) -> list[dict[str, Any]]:
    folders = venv.glob("lib/python3*/site-packages/*")
    sizes = {path.name: _megabytes(path) for path in folders if path.is_dir()}
    return [{"folder": name, "MB": size} for name, size in sorted(sizes.items(), key=lambda each: -each[1])[:10]]


def _megabytes(folder: Path) -> int:
    return int(subprocess.check_output(["du", "-s", "--block-size=1000000", folder], text=True).split()[0])


if __name__ == "__main__":
    main()
