"""A tiny random base and a catalog of solid colours."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from enrich.answers.prompt import make_prompt
from enrich.train import run
from enrich.train.collate import Photos
from enrich.vocabulary import Product
from tests.testing.tiny_families import MAKERS, open_member, write_member
from tests.testing.tiny_job import TinyJob
from tests.testing.tiny_phi3v import tiny_phi3v

# Titles of different lengths; two photos of another shape, so of another number of image tokens.
COLOURS = {
    "Red": ((220, 20, 20), (56, 56), "WARM", 12.0),
    "Sky Blue": ((90, 170, 250), (56, 56), "COLD", 345.0),
    "Green": ((20, 200, 20), (90, 30), "COLD", 7.0),
    "Black": ((5, 5, 5), (56, 56), "COLD", None),
    "Orange Peel": ((250, 150, 20), (30, 90), "WARM", 60.0),
}


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """The base's frozen head is scaled up: with small weights no training could make it certain of a token."""
    torch.set_num_threads(1)
    tiny = tiny_phi3v(tmp_path_factory.mktemp("base"))
    with torch.no_grad():
        tiny.model.lm_head.weight.mul_(4)
    tiny.model.save_pretrained(tiny.path)
    folder, products = tmp_path_factory.mktemp("photos"), []
    for number, (title, (colour, size, category, price)) in enumerate(COLOURS.items()):
        path = folder / f"{number}.png"
        Image.new("RGB", size, colour).save(path)
        products.append(Product(f"P{number}", title, category, price, (str(path),)))
    return TinyJob(tiny, products, make_prompt(("WARM", "COLD"), "EUR", max_new_tokens=70))


@pytest.fixture(scope="session", params=["phi3_v", *sorted(MAKERS)])
def any_job(request: pytest.FixtureRequest, job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """The same catalog with a base of each family."""
    if request.param == "phi3_v":
        return job
    path = tmp_path_factory.mktemp(request.param) / "tiny"
    member: Any = open_member(write_member(request.param, path, vocabulary=0.2))
    return replace(job, tiny=member, own={"photo_tokens": 64})


@pytest.fixture
def photos(job: TinyJob) -> Photos:
    return job.photos()


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in bf16 on the CPU, as on a GPU."""
    monkeypatch.setattr(run, "device_and_dtype", lambda _: (torch.device("cpu"), torch.bfloat16))
