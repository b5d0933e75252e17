"""What a tiny SmolVLM2 learns from is what `enrich` shows it afterwards."""

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from enrich.models.auto.model import AutoModel
from enrich.models.auto.processor import PhotoProcessor
from enrich.models.checkpoint import load_processor
from enrich.models.registry import family_of
from enrich.models.smolvlm import FACTS
from research.tiny_base.loop import Base, losses
from research.tiny_base.photos import VARIANTS, Drawn, Products, draw_size
from research.tiny_smolvlm.checkpoint import TILE, write_files
from research.tiny_smolvlm.train import open_processor, render_one, shown, spell_prompts
from sample.dialects import BASE
from sample.draw import render
from sample.products import sample_product

SEED, RETAILERS = 7, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smolvlm")
    write_files(out)
    return out


@pytest.fixture(scope="module")
def products(files: Path) -> list[tuple[int, Drawn]]:
    """Two of 2 x 2 tiles, by their indices."""
    drawn = ((index, render_one(files, SEED, RETAILERS, index)) for index in count())
    return list(islice((one for one in drawn if one[1].size == (2 * TILE, 2 * TILE)), 2))


def test_a_photo_costs_what_it_costs_the_tiny_base(files: Path) -> None:
    assert load_processor(files).photo_tokens(900, 1200).total == 80
    assert AutoModel(FACTS).empty_model(files).num_parameters() < 8_388_608  # 16 MiB in bf16


def test_photos_are_learned_as_they_are_served(files: Path, products: list[tuple[int, Drawn]]) -> None:
    group = spell_prompts(open_processor(files), ([drawn for _, drawn in products], [False, True]))

    found = shown(group, torch.tensor([1, 0]))["pixel_values"]

    processor, page = load_processor(files), family_of(files).layout.page
    for (index, _), learned in zip(products, found.flip(0), strict=True):
        rng = np.random.default_rng((17, SEED, index))
        _, side = draw_size(rng)
        photo = processor.preprocess(page(render(sample_product(SEED, index, BASE, 1), index, side), 4, TILE))
        served = processor.pixels(processor.join([photo]), torch.device("cpu"), torch.float32)["pixel_values"][0]
        assert torch.allclose(learned, served, atol=1e-6)


def test_prompts_that_enrich_spells_in_another_way_are_refused(
    files: Path, products: list[tuple[int, Drawn]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group: Products = ([drawn for _, drawn in products], [False, True])
    spell_prompts(open_processor(files), group)

    monkeypatch.setattr(PhotoProcessor, "whole_ids", lambda *_: [1])
    with pytest.raises(SystemExit, match="spelled in another way"):
        spell_prompts(open_processor(files), group)


def test_answers_depend_on_the_photo(files: Path, products: list[tuple[int, Drawn]]) -> None:
    group = spell_prompts(open_processor(files), ([drawn for _, drawn in products], [False, True]))
    torch.manual_seed(0)
    model = AutoModel(FACTS).empty_model(files).eval()
    rows, variants = torch.tensor([0]), torch.tensor([list(VARIANTS).index("base")])

    def loss(photo: int) -> float:
        base = Base(model, lambda found, _: shown(found, torch.tensor([photo])), Path())
        return losses(base, group, rows, variants)[0].item()

    assert loss(0) == loss(0) != loss(1)
