"""Whether a prompt with several photos can get too long. Beyond 4,096 tokens LongRoPE changes every answer."""

from typing import TYPE_CHECKING

from enrich.answers.prompt import Prompt, render_prompt
from enrich.errors import UsageError

if TYPE_CHECKING:
    from enrich.models.phi3_vision import Phi3VProcessor

MOST_TOKENS = 4096


def refuse_long_prompts(processor: "Phi3VProcessor", prompt: Prompt, max_new_tokens: int) -> None:
    """Refuse sizes with which the largest photos, the text and the longest answer would not fit MOST_TOKENS.

    Raises:
        UsageError: with the sum, and what to lower.
    """
    images = processor.image_processor
    further = images.photos_per_product - 1
    if not further:
        return  # num_crops 16 fits
    main, each = images.most_image_tokens(0), images.most_image_tokens(1)
    text = len(processor.token_ids(render_prompt(prompt, 1 + further), [0] * (1 + further)))
    total = main + further * each + text + max_new_tokens
    if total > MOST_TOKENS:
        raise UsageError(
            f"photos_per_product {1 + further}: a prompt and its answer could take {total:,} tokens, more than "
            f"{MOST_TOKENS:,}: {main:,} for the main photo (num_crops {images.crops_at(0)}) + {further} x {each:,} for "
            f"further ones (more_crops {images.crops_at(1)}) + {text} for the text + {max_new_tokens} for the answer "
            "(max_new_tokens); lower one of these"
        )
