"""A tiny random base and a catalog of solid colours whose titles name them: learnable only from the photo."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from enrich.answers.prompt import Prompt, make_prompt
from enrich.settings.training import TrainSettings
from enrich.vocabulary import Product
from tests.testing.tiny_phi3v import Tiny, tiny_phi3v

# Titles of different lengths; two photos of another shape, so of another number of image tokens.
COLOURS = {
    "Red": ((220, 20, 20), (56, 56), "WARM", 12.0),
    "Sky Blue": ((90, 170, 250), (56, 56), "COLD", 345.0),
    "Green": ((20, 200, 20), (90, 30), "COLD", 7.0),
    "Black": ((5, 5, 5), (56, 56), "COLD", None),
    "Orange Peel": ((250, 150, 20), (30, 90), "WARM", 60.0),
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The base. Its frozen head is scaled up: with small weights no training could make it certain of a token."""
    torch.set_num_threads(1)
    made = tiny_phi3v(tmp_path_factory.mktemp("base"))
    with torch.no_grad():
        made.model.lm_head.weight.mul_(4)
    made.model.save_pretrained(made.path)
    return made


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    folder = tmp_path_factory.mktemp("photos")
    made = []
    for number, (title, (colour, size, category, price)) in enumerate(COLOURS.items()):
        path = folder / f"{number}.png"
        Image.new("RGB", size, colour).save(path)
        made.append(Product(f"P{number}", title, category, price, str(path)))
    return made


@pytest.fixture(scope="session")
def prompt() -> Prompt:
    return make_prompt(("WARM", "COLD"), "EUR")


@pytest.fixture(scope="session")
def make_settings(tiny: Tiny) -> Callable[..., TrainSettings]:
    """Settings for the tiny base, with changes."""

    def make(**changes: object) -> TrainSettings:
        values: dict = {
            "model": str(tiny.path),
            "learning_rate": 1e-2,
            "epochs": 80,
            "batch_size": 5,
            "effective_batch_size": 5,
            "evaluations": 2,
            "max_new_tokens": 70,
            "device": "cpu",
        }
        return TrainSettings.model_validate({**values, **changes})

    return make
