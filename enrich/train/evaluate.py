"""Evaluation on generated answers, never on teacher-forced logits."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from statistics import fmean
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from enrich.answers.parse import Answer, AnswerMalformed, parse_answer
from enrich.answers.prompt import Prompt
from enrich.models.checkpoint import stop_ids
from enrich.models.generation import Generated, generate_answers
from enrich.models.protocols import Processor
from enrich.scores.metrics import Scores, score
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.record import Evaluation
from enrich.vocabulary import Product

MAX_ROWS = 512  # a share measured on so many rows has a standard error below 0.022


class SamplePrediction(NamedTuple):
    """A photo's true answer, and the one that the model wrote: untrusted text."""

    image_path: str
    truth: str
    predicted: str


def evaluate(
    model: PreTrainedModel | PeftModel,
    photos: Photos,
    settings: TrainSettings,
    prompt: Prompt,
    *,
    step: int,
    keep_samples: Callable[[Sequence[SamplePrediction]], None] = lambda predictions: None,
) -> Evaluation:
    """Answer `photos` greedily and score the answers; `keep_samples` gets them. Leaves the model in eval mode."""
    generated = generate(model, photos, settings, prompt.max_new_tokens)
    keep_samples(_sample_predictions(photos, generated))
    answers = [_read(answer, photos.processor, prompt) for answer in generated]
    products = [example.product for example in photos.examples]
    scores, attributes = score(products, answers), attribute_accuracy(products, answers)
    return Evaluation(
        step=step,
        score=composite(scores, attributes),
        parse_rate=scores["parse_rate"],
        category_accuracy=scores["category_accuracy"],
        title_token_f1=scores["title_token_f1"],
        mdape=scores["price"]["mdape"] if scores["price"] else None,
        attribute_accuracy=attributes,
    )


def attribute_accuracy(products: Sequence[Product], answers: Sequence[Answer | None]) -> float | None:
    """Share of right answers to the fields beyond title, category and price, 0..1; None without such fields."""
    right = [
        answer is not None and answer.attributes.get(name) == value
        for product, answer in zip(products, answers, strict=True)
        for name, value in product.attributes.items()
    ]
    return fmean(right) if right else None


def composite(scores: Scores, attributes: float | None = None) -> float:
    """One number in 0..1 to choose weights by: the mean of parse rate, category accuracy, title token F1, the accuracy
    of `attributes` and, where prices are known, 1 - MdAPE (not below 0)."""
    parts = [scores["parse_rate"], scores["category_accuracy"], scores["title_token_f1"]]
    if scores["price"]:
        parts.append(max(0.0, 1.0 - scores["price"]["mdape"]))
    if attributes is not None:
        parts.append(attributes)
    return fmean(parts)


def generate(
    model: PreTrainedModel | PeftModel, photos: Photos, settings: TrainSettings, max_new_tokens: int
) -> list[Generated]:
    """Greedy answers in the order of `photos`; each process of a distributed run answers its share of them."""
    model.eval()
    ranks = PartialState()
    collator = Collator(photos.processor)
    ends = stop_ids(photos.processor)
    own: list[tuple[int, Generated]] = []
    size = settings.batch_size
    batches = [range(start, min(start + size, len(photos))) for start in range(0, len(photos), size)]
    # Accelerate wraps PeftModel.forward in autocast for a bf16 base; stock `generate` calls the base's forward instead.
    mixed = isinstance(model, PeftModel) and model.dtype == torch.bfloat16
    # Compiled layers would be compiled again for every length that the cache grows to.
    with torch.compiler.set_stance("force_eager"):
        for indices in batches[ranks.process_index :: ranks.num_processes]:
            prompts = embed_images(model, collator.prompts(photos.__getitems__(indices)), photos, settings)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
                answers = generate_answers(model, prompts, max_new_tokens=max_new_tokens, stop_ids=ends, top_k=1)
            own += zip(indices, answers, strict=True)
            photos.keep()
    return [answer for _, answer in sorted(gather_object(own), key=itemgetter(0))]


def _sample_predictions(photos: Photos, generated: Sequence[Generated]) -> list[SamplePrediction]:
    decode = photos.processor.tokenizer.decode
    return [
        SamplePrediction(
            example.photos[0].path,
            decode(example.answer_ids, skip_special_tokens=True),
            decode(answer.token_ids, skip_special_tokens=True),
        )
        for example, answer in zip(photos.examples, generated, strict=True)
    ]


def _read(answer: Generated, processor: Processor, prompt: Prompt) -> Answer | None:
    if not answer.finished:
        return None  # serving would report it as truncated
    try:
        return parse_answer(processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True), prompt)
    except AnswerMalformed:
        return None
