"""When a person should look at a row."""

from pydantic import Field

from enrich.settings.base import Settings


class TitleRules(Settings):
    """Rules that flag a title for review."""

    max_characters: int = Field(default=150, ge=1, description="Google Merchant Center cuts longer ones")
    forbidden_words: tuple[str, ...] = Field(
        default=("sale", "discount", "free shipping", "best price", "buy now", "guaranteed"),
        description="Words and phrases that no title may contain, such as brands; the default ones get shops refused",
    )
    scripts: tuple[str, ...] = Field(default=(), description="LATIN, CYRILLIC, GREEK ...; empty: any")
    min_word_probability: float = Field(
        default=0.3, ge=0, le=1, description="Of a colour or material in a title, below which it is not relied on"
    )


class ReviewSettings(Settings):
    """When a person should look at a row."""

    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Left out: what the calibration split says catches 90 % of the mistakes"
    )
    max_price_ratio: float = Field(default=6.0, gt=1, description="price_high / price_low above which it is too wide")
    titles: TitleRules = TitleRules()
