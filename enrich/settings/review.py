"""When a person should look at a row."""

from pydantic import Field

from enrich.settings.base import Settings


class TitleRules(Settings):
    """Rules that flag a title for review."""

    max_characters: int = Field(default=150, ge=1, description="Maximum length; Merchant Center cuts longer titles")
    forbidden_words: tuple[str, ...] = Field(
        default=("sale", "discount", "free shipping", "best price", "buy now", "guaranteed"),
        description="Words and phrases that no title may contain, such as brands; the default ones get shops rejected",
    )
    scripts: tuple[str, ...] = Field(default=(), description="Allowed scripts: LATIN, CYRILLIC, GREEK ...; empty: any")
    min_word_probability: float = Field(
        default=0.3, ge=0, le=1, description="Minimum probability of a colour or material in a title"
    )


class ReviewSettings(Settings):
    """When a person should look at a row."""

    min_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Minimum confidence of the category; null: the threshold that catches 90 % of the mistakes in the "
        "calibration split",
    )
    max_price_ratio: float = Field(default=6.0, gt=1, description="Largest price_high / price_low that is not too wide")
    titles: TitleRules = TitleRules()
