"""What an engine hands back for one photo: the text, and how sure the model was of each token of it."""

from dataclasses import dataclass, field

import numpy as np

TOP_K = 8  # alternatives kept a token: enough for the digits that matter and the next labels


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one request, n tokens without the stop token; log-probabilities are natural logs.

    `error` is set, and the rest empty, where the engine could not answer this request.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # (n,) float32
    # (n, k) int32, most probable first
    top_ids: np.ndarray = field(default_factory=lambda: np.empty((0, TOP_K), np.int32))
    top_logprobs: np.ndarray = field(default_factory=lambda: np.empty((0, TOP_K), np.float32))  # (n, k) float32
    finished: bool = False  # False: the token budget ran out
    prompt_tokens: int = 0
    # (prompt_tokens,) int32, the processor's image_token_id at each position of the image
    prompt_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    error: str | None = None
