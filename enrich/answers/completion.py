"""What an engine returns for one photo: the text, and the log-probabilities of its tokens."""

from dataclasses import dataclass, field

import numpy as np

TOP_K = 8  # alternatives kept per token: enough for the digits that matter and the next labels


@dataclass(frozen=True)
class Completion:
    """The answer to one request, n tokens without the stop token; log-probabilities are natural logs.

    If the engine could not answer, `error` says why and the rest is empty.
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
