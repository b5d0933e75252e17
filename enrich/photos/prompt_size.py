"""Check whether a prompt can get too long."""

from pathlib import Path

from enrich.answers.prompt import Prompt
from enrich.errors import UsageError
from enrich.models.base import PhotoTokens
from enrich.models.protocols import Processor
from enrich.models.registry import read_object

MOST_TOKENS = 4096  # of a prompt and its answer; some models answer otherwise beyond it


def most_tokens(directory: Path) -> int:
    """Maximum tokens of a prompt and its answer for the checkpoint or adapter in `directory`: MOST_TOKENS, or fewer if
    its model supports fewer. Raises ValueError: config.json is damaged."""
    config = read_object(directory / "config.json")
    text = config.get("text_config") or {}
    made_for = {**config, **text}.get("max_position_embeddings") if isinstance(text, dict) else None
    return min(MOST_TOKENS, made_for) if isinstance(made_for, int) else MOST_TOKENS


def refuse_long_prompts(processor: Processor, prompt: Prompt, max_new_tokens: int, most: int = MOST_TOKENS) -> None:
    """Refuse sizes with which the largest photos, the text and the longest answer would not fit `most` tokens.

    Raises:
        UsageError: with the arithmetic, and what to lower.
    """
    further = processor.preparation.photos_per_product - 1
    main, each = processor.most_photo_tokens(0), processor.most_photo_tokens(1)
    text = len(processor.prompt_ids(prompt.instruction, [PhotoTokens(0)] * (1 + further)))
    total = main + further * each + text + max_new_tokens
    if total > most:
        more = f" + {further} x {each:,} for further ones (more_photo_tokens, or more_crops)" if further else ""
        raise UsageError(
            f"photos_per_product {1 + further}: a prompt and its answer could take {total:,} tokens, more than "
            f"{most:,}: {main:,} for the main photo (photo_tokens, or num_crops){more} + {text} for the text + "
            f"{max_new_tokens} for the answer (max_new_tokens); lower one of these"
        )
