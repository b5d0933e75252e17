"""Translation to and from vLLM: requests to its input, its outputs to completions."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.inputs import MultiModalInput
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from enrich.answers.completion import TOP_K, Completion
from enrich.engines.base import Request
from enrich.models.protocols import Processor


def renderer(processor: Processor, question: str, dtype: torch.dtype) -> Callable[[Request], MultiModalInput]:
    """A function that makes vLLM's input from a request's pages, for a model of that type.

    It raises ValueError if there are more pages than are allowed, or one is not as the model's layout makes them.
    """
    made = processor.vllm_input(question, dtype)
    most = processor.preparation.photos_per_product

    def render(request: Request) -> MultiModalInput:
        request.check(most)
        return made(request.pages, _names(request))

    return render


def _names(request: Request) -> list[str]:
    """The names of the photos in vLLM's cache of encoded images: a photo has one for each size of its pages."""
    photos = request.sha256s or [f"{request.id} {number}" for number in range(len(request.pages))]
    sizes = ("x".join(map(str, page.shape[:2])) for page in request.pages)
    return [f"{photo} {size}" for photo, size in zip(photos, sizes, strict=True)]


def sampling(stop_ids: list[int], max_new_tokens: int, structure: dict[str, Any] | None = None) -> SamplingParams:
    """Greedy, with each token's best alternatives; only what `stop_ids` names ends an answer.

    Ids are decoded once, at the end, and log-probabilities stay in flat arrays: decoding nine tokens a step into
    objects would cost the serving process 3 ms a photo.
    """
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        logprobs=TOP_K,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,  # the checkpoint's eos does not end an answer
        stop_token_ids=stop_ids,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(structural_tag=json.dumps(structure)) if structure else None,
    )


def completion(output: RequestOutput, id: str, tokenizer: Any) -> Completion:
    """A finished request of vLLM as a completion: without its stop token, alternatives best first."""
    [answer] = output.outputs
    prompt_ids = np.array(output.prompt_token_ids or (), np.int32)
    if answer.finish_reason not in ("stop", "length"):
        return Completion(id, error=f"the engine failed: vLLM ended the request ({answer.finish_reason})")
    finished = answer.finish_reason == "stop"
    token_ids = tuple(answer.token_ids)[: -1 if finished else None]
    flat: Any = answer.logprobs
    # Each step has the chosen token, then the best ones, which include the chosen one.
    places = np.array(flat.start_indices[: len(token_ids)], np.int64)[:, None] + np.arange(TOP_K + 1)
    ids, logprobs = np.array(flat.token_ids, np.int32)[places], np.array(flat.logprobs, np.float32)[places]
    return Completion(
        id=id,
        text=tokenizer.decode(token_ids, skip_special_tokens=True),
        token_ids=token_ids,
        logprobs=logprobs[:, 0].copy(),
        top_ids=ids[:, 1:].copy(),
        top_logprobs=logprobs[:, 1:].copy(),
        finished=finished,
        prompt_tokens=len(prompt_ids),
        prompt_ids=prompt_ids,
    )
