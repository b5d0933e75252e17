"""Learning one batch by heart."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from enrich.answers.prompt import Prompt
from enrich.errors import RunFailed
from enrich.settings.training import TrainSettings
from enrich.train.overfit import LEARNED, describe_losses, overfit_one_batch
from enrich.train.record import TrainProgress
from enrich.vocabulary import Product
from tests.testing.tiny_phi3v import Tiny

Make = Callable[..., TrainSettings]


def test_one_batch_is_learned_by_heart(
    products: list[Product], prompt: Prompt, tiny: Tiny, make_settings: Make, tmp_path: Path
) -> None:
    told: list[TrainProgress] = []
    settings = make_settings(batch_size=4, effective_batch_size=8, optimizer={"neftune_noise_alpha": 50})
    losses = overfit_one_batch(products, prompt, settings, tiny.path, on_progress=told.append)
    assert losses[-1] < LEARNED <= min(losses[:-1])
    assert losses[0] > 1.0
    assert [progress.loss for progress in told] == list(losses)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_learned_is_a_failure_that_says_what_to_do(
    products: list[Product], prompt: Prompt, tiny: Tiny, make_settings: Make
) -> None:
    with pytest.raises(RunFailed) as raised:
        overfit_one_batch(products, prompt, make_settings(learning_rate=1e-7), tiny.path, max_steps=7)
    message = str(raised.value)
    assert message.startswith(
        "one batch of 5 photos was not learned by heart in 7 steps at learning_rate 1e-07; loss of steps 3 to 7: "
    )
    assert message.endswith(
        ", not below 0.01; lower learning_rate, then raise lora_r; if that changes nothing, photos, answers or model "
        "are at fault"
    )
    with pytest.raises(RunFailed, match=r"it still falls: raise learning_rate$"):
        overfit_one_batch(products, prompt, make_settings(learning_rate=1e-2), tiny.path, max_steps=12)


def test_losses_are_shown_from_their_end() -> None:
    assert describe_losses([3.0, 2.0, 1.0, 0.5, 0.1, 0.05, 0.009]) == (
        "loss of steps 3 to 7: 1.0000, 0.5000, 0.1000, 0.0500, 0.0090"
    )
    assert describe_losses([math.nan]) == "loss of steps 1 to 1: nan"
