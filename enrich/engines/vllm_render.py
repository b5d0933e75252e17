"""Translation to and from vLLM: pages to an input that needs no preprocessing, an output to a completion."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.inputs import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from enrich.answers.completion import TOP_K, Completion
from enrich.engines.base import Request
from enrich.models.phi3_vision import Phi3VProcessor

_ON_DEVICE = MultiModalBatchedField()
_ON_CPU = MultiModalBatchedField(keep_on_cpu=True)


def renderer(processor: Phi3VProcessor, text: Callable[[int], str]) -> Callable[[Request], MultiModalInput]:
    """A function that makes vLLM's input from a request's pages: 0.7 ms each. vLLM itself renders on one thread, 20 ms.

    It raises ValueError if a page does not consist of whole crops, or there are more crops or pages than are allowed.

    Args:
        text: the prompt for so many photos, with the tags `<|image_1|>`, `<|image_2|>` ...
    """

    @lru_cache(4096)  # there are as many numbers of image tokens as num_crops and more_crops have grids
    def prompt(image_tokens: tuple[int, ...]) -> tuple[list[int], list[PlaceholderRange]]:
        ids = processor.token_ids(text(len(image_tokens)), image_tokens)
        places = [PlaceholderRange(ids.index(-k), count) for k, count in enumerate(image_tokens, start=1)]
        return [processor.image_token_id if i < 0 else i for i in ids], places

    def render(request: Request) -> MultiModalInput:
        request.check(processor.image_processor.photos_per_product)
        made = [
            processor.image_processor.preprocess(page, do_hd_transform=False, do_normalize=False, positions=[position])
            for position, page in enumerate(request.pages)
        ]
        ids, places = prompt(tuple(features["num_img_tokens"][0] for features in made))
        items = [
            MultiModalKwargsItem(
                {
                    "pixel_values": MultiModalFieldElem(features["pixel_values"][0], _ON_DEVICE),
                    "image_sizes": MultiModalFieldElem(features["image_sizes"][0], _ON_CPU),
                }
            )
            for features in made
        ]
        return mm_input(ids, MultiModalKwargsItems({"image": items}), {"image": _names(request)}, {"image": places})

    return render


def _names(request: Request) -> list[str]:
    """The names of the photos in vLLM's cache of encoded ones: a photo has as many of them as numbers of crops."""
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
