"""Whether a prompt with several photos can get too long."""

from enrich.answers.prompt import Prompt
from enrich.errors import UsageError
from enrich.models.base import PhotoTokens, Processor

MOST_TOKENS = 4096  # of a prompt and its answer; beyond it LongRoPE changes every answer


def refuse_long_prompts(processor: Processor, prompt: Prompt, max_new_tokens: int) -> None:
    """Refuse sizes with which the largest photos, the text and the longest answer would not fit MOST_TOKENS.

    Raises:
        UsageError: with the sum, and what to lower.
    """
    how = processor.preparation
    further = how.photos_per_product - 1
    if not further:
        return  # num_crops 16 fits
    main, each = processor.most_photo_tokens(0), processor.most_photo_tokens(1)
    text = len(processor.prompt_ids(prompt.instruction, [PhotoTokens(0)] * (1 + further)))
    total = main + further * each + text + max_new_tokens
    if total > MOST_TOKENS:
        raise UsageError(
            f"photos_per_product {1 + further}: a prompt and its answer could take {total:,} tokens, more than "
            f"{MOST_TOKENS:,}: {main:,} for the main photo (num_crops {how.num_crops}) + {further} x {each:,} for "
            f"further ones (more_crops {how.more_crops}) + {text} for the text + {max_new_tokens} for the answer "
            "(max_new_tokens); lower one of these"
        )
