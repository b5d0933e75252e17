"""Pages, adapters and settings for the engine on the tiny base."""

import numpy as np

from enrich.answers.completion import Completion
from enrich.engines.base import Request
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.settings.run import RunSettings

TOP = 2e-3  # what log-probabilities may differ by in float32
SIZES = ((300, 400), (640, 360), (100, 100), (40, 800))  # portrait, landscape, square, strip: every arrangement


def photo(number: int) -> np.ndarray:
    """Patches of colour, (height, width, 3) uint8."""
    width, height = SIZES[number % len(SIZES)]
    patches = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return patches.repeat(-(-height // 6), axis=0).repeat(-(-width // 6), axis=1)[:height, :width]


def request(number: int) -> Request:
    return Request(f"photo {number}", (hd_transform(photo(number), 4, 112),))


def settings(**more: object) -> RunSettings:
    given = {"engine": "vllm", "device": "cpu", "vllm": {"max_num_seqs": 4}, "max_new_tokens": 80}
    return RunSettings.model_validate({**given, **more})


def check_same(ours: list[Completion], theirs: list[Completion]) -> None:
    """The same answers to the same photos, token for token, and the same evidence."""
    expected = {completion.id: completion for completion in theirs}
    assert sorted(completion.id for completion in ours) == sorted(expected)
    for completion in ours:
        other = expected[completion.id]
        assert completion.error is None
        assert completion.token_ids == other.token_ids
        assert (completion.text, completion.finished) == (other.text, other.finished)
        assert completion.prompt_tokens == other.prompt_tokens
        np.testing.assert_allclose(completion.logprobs, other.logprobs, atol=TOP)
        np.testing.assert_allclose(completion.top_logprobs, other.top_logprobs, atol=TOP)
        known = np.isfinite(other.top_logprobs)  # under the grammar a step may permit fewer tokens than are kept
        steps, places = np.nonzero((completion.top_ids != other.top_ids) & known)
        gaps = np.abs(other.top_logprobs[steps] - other.top_logprobs[steps, places][:, None])
        last = places == other.top_logprobs.shape[1] - 1  # may be tied with one that is not kept
        assert (last | ((gaps < TOP).sum(axis=1) > 1)).all()  # equal ones may change places, and no others
