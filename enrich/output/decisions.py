"""The file of decisions that a review page saves: its format, and the rules for its values."""

import hashlib
import re
import unicodedata
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from enrich.answers.amount import LARGEST, SMALLEST
from enrich.answers.plain_text import MAX_TITLE, excerpt, holds_control_characters
from enrich.errors import UsageError
from enrich.output.run_record import RunInfo
from enrich.settings.fields import FieldName
from enrich.vocabulary import LONGEST_KEY

FILE_FORMAT = "enrich-review-2"
REJECTED = "rejected"  # a decision; also in review_reasons of a row that has no title, category and price any more
MAX_DECISIONS = 100_000
MAX_FILE_BYTES = 128 << 20  # a decision takes some 700 bytes

# Letters and marks that are drawn as nothing, or as a blank, and so could hide in a title.
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
# Spreadsheets execute a cell that starts with these, also in full-width form.
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
SPECIAL_TOKEN = r"<\|[^<>]*\|>|</?s>|<unk>"  # of the tokenizers; in a label they would end or steer an answer


def _visible(text: str) -> str:
    """`text` itself; ValueError if it is not one line of visible characters, or contains a control token."""
    hidden = holds_control_characters(text) or any(character in INVISIBLE for character in text)
    if not text.strip() or len(text) > MAX_TITLE or hidden:
        raise ValueError(f"must be one line of 1 to {MAX_TITLE} characters, without control or invisible characters")
    if found := re.search(SPECIAL_TOKEN, text):
        raise ValueError(f"{found[0]!r} is a special token of the model; leave it out")
    return text


def typed(text: str) -> str:
    """`text` in NFC with single spaces; ValueError as `_visible`, or if a spreadsheet would execute it."""
    line = " ".join(unicodedata.normalize("NFC", _visible(text)).split())
    if line.startswith(tuple(FORMULA)):
        raise ValueError(f"spreadsheets execute text that starts with {line[0]!r}; start with a letter or digit")
    return line


Typed = Annotated[str, AfterValidator(typed)]
Label = Annotated[str, AfterValidator(_visible)]  # one of the catalog's own, which is checked against the output
Suggested = Annotated[str, Field(max_length=10_000)]
Answered = Literal["title", "category", "price"]


class DecidedPhoto(BaseModel):
    """A photo of the product that was decided on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str = Field(min_length=1, max_length=LONGEST_KEY)
    etag: str = Field(max_length=1024)
    sha256: str | None = Field(default=None, max_length=128)


class Decision(BaseModel):
    """A person's decision about one suggestion. Title, category, price and attributes are the outcome.

    The person confirms the fields in `confirmed` and all `attributes`; the others are still the model's answers. If
    none are named, title and category are confirmed, and so is a price that differs from the suggested one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    product_id: str = Field(min_length=1, max_length=LONGEST_KEY)
    photos: tuple[DecidedPhoto, ...] = Field(min_length=1, max_length=100)  # of the row decided on, in its order
    run_id: str = Field(max_length=100)
    decision: Literal["accepted", "edited", "rejected"]
    confirmed: tuple[Answered, ...] | None = None
    title: Typed | None = None
    category: Label | None = None
    category_path: tuple[str, ...] | None = None  # this and the next follow from the category and its row
    category_id: str | None = None
    price: float | None = Field(default=None, ge=SMALLEST, le=LARGEST, allow_inf_nan=False)
    currency: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    # Of the declared fields, by name; None: it cannot be seen. A choice or a number is checked against its field later.
    attributes: dict[FieldName, Label | None] | None = Field(default=None, max_length=100)
    # This and the rest, except `picked` and `reviewed_at`, are taken from the row that was decided on.
    suggested_title: Suggested | None = None
    suggested_category: Suggested | None = None
    suggested_price: float | None = None
    suggested_attributes: dict[FieldName, Suggested | None] | None = Field(default=None, max_length=100)
    suggested_confidence: float | None = None
    suggested_price_low: float | None = None
    suggested_price_high: float | None = None
    suggested_confidences: dict[FieldName, float | None] | None = Field(default=None, max_length=100)
    adapter: str | None = None
    picked: Literal["chosen", "random"] | None = None  # by `enrich label`
    reviewed_at: datetime | None = None  # by the clock of the browser: tells files apart, and orders nothing

    @field_validator("reviewed_at")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        if moment.tzinfo is None:
            raise ValueError("a time needs a zone")
        return moment.astimezone(UTC)

    @model_validator(mode="after")
    def _says_what_is_right(self) -> "Decision":
        if self.decision == REJECTED:
            if self.title or self.category or self.price or self.attributes or self.confirmed:
                raise ValueError("a rejected row has no title, category or price nor other fields, and confirms none")
        elif not self.title or not self.category:
            raise ValueError("an accepted or edited row needs a title and a category")
        elif self.confirmed is not None and not {"title", "category"} <= set(self.confirmed):
            raise ValueError("an accepted or edited row confirms its title and category")
        if self.currency and self.price is None:
            raise ValueError("a currency without a price")
        return self


class DecisionFile(BaseModel):
    """The file that the review page saves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["enrich-review-2"]
    output: str = Field(min_length=1, max_length=2000)
    runs: dict[str, str] | None = None  # run_id -> run_mark of those that answered; None: of the output named
    reviewed_by: Typed
    decisions: tuple[Decision, ...] = Field(min_length=1, max_length=MAX_DECISIONS)

    @model_validator(mode="after")
    def _decides_once(self) -> "DecisionFile":
        [(key, count)] = Counter(one.product_id for one in self.decisions).most_common(1)
        if count > 1:
            raise ValueError(f"{count} decisions about {key!r}")
        return self

    @property
    def digest(self) -> str:
        """Identifies a file by its content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def run_mark(run: RunInfo) -> str:
    """Distinguishes a run from others of the same name, independent of where its output is."""
    return hashlib.sha256(f"{run.run_id} {run.created_at.isoformat()} {run.fingerprint}".encode()).hexdigest()[:16]


def read_decisions(path: Path) -> DecisionFile:
    """The file that a review page saved; UsageError if it cannot be read or is something else."""
    try:
        if not path.is_file():
            raise UsageError(f"{path}: no such file; name the file that the review page saved")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise UsageError(f"{path}: {size:,} bytes, more than {MAX_FILE_BYTES:,}; decide fewer rows a file")
        return DecisionFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name the file that the review page saved") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = excerpt(".".join(map(str, first["loc"])) or "file")
        reason = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise UsageError(f"{path}: {where}: {reason}; save it again from the review page") from error
