"""Settings of fine-tuning and merging."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from enrich.settings.base import Settings
from enrich.settings.catalog import Columns, SplitSettings
from enrich.settings.fields import FIELD_NAME, FieldName, FieldSettings, WordingSettings
from enrich.settings.models import AUTO, DEFAULT_MODEL, REVISIONS, TINY_MODEL
from enrich.settings.photos import GroupBy, PhotoLimits
from enrich.vocabulary import Language, PriceUnit

Tracker = Literal["wandb", "mlflow", "trackio", "tensorboard"]
# What `optimizer` may contain: the fields of transformers.TrainingArguments that change how weights are updated and
# that have no separate setting. enrich sets the others itself, or does not use them.
OPTIMIZER_FIELDS = (
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "neftune_noise_alpha",
)  # fmt: skip


class TrainSettings(Settings):
    """Fine-tuning: photo -> title, category, full price, as a LoRA adapter."""

    model: str = Field(
        default=AUTO,
        description="Hub id or directory of a vision-language model; "
        f"{AUTO}: {DEFAULT_MODEL} on a GPU, {TINY_MODEL} without one",
    )
    revision: str | None = Field(
        default=None, description=f"Full commit of a hub model; pinned for {' and '.join(REVISIONS)}"
    )
    num_crops: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Maximum number of crops of 336 pixels that a photo is cut into: more detail, more tokens",
    )
    photo_tokens: int | None = Field(
        default=None,
        ge=64,
        le=4096,
        description="Instead of num_crops, for any model: about how many tokens a large photo takes, such as 250, 500 "
        "or 750; the exact number is printed before training",
    )
    looks: tuple[int, int] | None = Field(
        default=None,
        description="Look twice: crops of the main photo at a first look, and at a second look that only products with "
        "a doubtful first answer get, such as [1, 4]. The second number replaces num_crops",
    )
    photos_per_product: int = Field(
        default=1, ge=1, le=5, description="Maximum number of photos in one prompt: the main photo, then further ones"
    )
    more_crops: int = Field(default=1, ge=1, le=16, description="Like num_crops, but for each further photo")
    more_photo_tokens: int | None = Field(
        default=None, ge=64, le=4096, description="Like photo_tokens, instead of more_crops"
    )
    fast_decode: bool = Field(
        default=False, description="Decode large JPEGs at a reduced scale, in training and serving: 1.5 times the rate"
    )
    columns: Columns = Columns()
    group_by: GroupBy = Field(
        default="photo",
        description="Further photos if the table names only one for a product: photo: none; folder: those in its "
        "folder; a regular expression on the whole path: those with the same group product_id",
    )
    category_path: bool = Field(
        default=False,
        description="Teach all levels of a category, WOMAN > SHOES > PUMPS: those of columns.category from the last to "
        "the first, or one column with such paths",
    )
    taxonomy: str | None = Field(
        default=None,
        min_length=1,
        description="Table of a standard taxonomy (path and id as CSV, TSV or Parquet, or Google's or Shopify's text "
        "file) with all the catalog's categories, by path or by id; rows then have category_id",
    )
    language: Language = Field(
        default="en", description="Language of the question, the labels in an answer and the word for unknown"
    )
    terse: bool = Field(
        default=False,
        description="Answers without labels, one value a line: a quarter fewer tokens, so faster answers; but then "
        "only a line's position says which field it answers",
    )
    price_unit: Literal[PriceUnit, "auto"] = Field(
        default="auto",
        description="Unit of a price in an answer: whole units of the currency (129 for 129.00), or cents (79 for "
        "0.79). auto: cents if whole units would change a twentieth of the prices by over 5 %",
    )
    wording: WordingSettings = Field(default=WordingSettings(), description="Words that replace those of language")
    fields: dict[FieldName, FieldSettings] = Field(
        default={}, description="Further fields to answer, beyond title, category and price: `colour: {kind: choice}`"
    )
    allow_dropped: bool = Field(default=False, description="Train even if more than a tenth of the rows are left out")
    split: SplitSettings = SplitSettings()
    limits: PhotoLimits = PhotoLimits()

    lora_r: int = Field(default=16, ge=1, description="Rank of the LoRA matrices")
    lora_alpha: int = Field(default=32, ge=1, description="LoRA updates are scaled by lora_alpha / lora_r")
    target_modules: tuple[str, ...] = Field(
        default=(), description="Linear layers of each decoder layer that get LoRA; empty: all of them"
    )
    adapt_vision: bool = Field(
        default=False, description="Also LoRA on vision tower and projector; served merged only, features not cached"
    )
    load_in_4bit: bool = Field(default=False, description="QLoRA: the frozen base in NF4, for a GPU with 16 GB")

    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate")
    output_learning_rate: float | None = Field(
        default=None, gt=0, description="Add LoRA on the output layer, where new words come from, at this rate"
    )
    price_weight: int = Field(
        default=1, ge=1, le=16, description="Weight of a price's digits in the loss; other tokens have weight 1"
    )
    optimizer: dict[str, Any] = Field(
        default={}, description=f"Fields of transformers.TrainingArguments: {', '.join(OPTIMIZER_FIELDS)}"
    )
    epochs: float = Field(default=3.0, gt=0, description="Passes over the training split")
    batch_size: int = Field(default=8, ge=1, description="Photos in one forward pass")
    effective_batch_size: int = Field(default=16, ge=1, description="Photos in one optimiser step")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for activations, more time")
    compile: bool | None = Field(
        default=None, description="torch.compile the layers; null: on a GPU, if the run is long enough to pay off"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto", description="auto: flash-attention if it is installed, else torch's own kernels"
    )
    cache_vision_features: bool = Field(default=True, description="Compute the frozen tower's features once")
    evaluations: int = Field(default=4, ge=1, description="Generation-based evaluations of the validation split")
    patience: int = Field(default=3, ge=1, description="Evaluations without improvement before an early stop")
    max_new_tokens: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Maximum length of an answer in tokens; rows with longer ones are left out. null: a quarter more "
        "than the catalog's longest answer takes, at least 64",
    )
    max_length: int = Field(default=4096, ge=64, le=4096, description="Maximum tokens of a prompt with its answer")
    max_minutes: float | None = Field(
        default=None, gt=0, description="Stop after this time and keep the best checkpoint so far"
    )
    seed: int = 3
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    report_to: tuple[Tracker, ...] = Field(
        default=(), description="Experiment trackers: none, wandb, mlflow, trackio, tensorboard, or a list of them"
    )
    run_name: str | None = Field(
        default=None, min_length=1, description="Name of the run at the trackers; null: the time"
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, value: object) -> object:
        return () if value in (None, "none") else (value,) if isinstance(value, str) else value

    @field_validator("looks", mode="before")
    @classmethod
    def _first_is_quicker(cls, looks: object) -> object:
        if looks is None:
            return None
        numbers = list(looks) if isinstance(looks, (list, tuple)) else []
        if len(numbers) != 2 or not all(type(one) is int and 1 <= one <= 16 for one in numbers):
            raise ValueError(f"{looks!r} is not two numbers of crops from 1 to 16; write [1, 4]")
        if numbers[0] >= numbers[1]:
            raise ValueError(f"{numbers}: the first look must take fewer crops than the second; write [1, 4]")
        return tuple(numbers)

    @field_validator("fields", mode="before")
    @classmethod
    def _have_names(cls, fields: object) -> object:
        for name in fields if isinstance(fields, dict) else ():
            if name in ("title", "category", "price"):
                raise ValueError(f"{name} is always answered; its column is columns.{name}, its word wording.{name}")
            if not re.fullmatch(FIELD_NAME, name):
                raise ValueError(
                    f"{name!r} is not a field name, which has at most 40 of a to z, 0 to 9 and _, a letter first; "
                    "words of your own belong in its label, the catalog's in its column"
                )
        return fields

    @field_validator("optimizer")
    @classmethod
    def _names_optimizer_fields(cls, optimizer: dict[str, Any]) -> dict[str, Any]:
        for name in optimizer:
            if name not in OPTIMIZER_FIELDS:
                raise ValueError(f"{name!r} cannot be set here; choose from {', '.join(OPTIMIZER_FIELDS)}")
        return optimizer

    @model_validator(mode="after")
    def _agree(self) -> "TrainSettings":
        if self.effective_batch_size % self.batch_size:
            raise ValueError(
                f"effective_batch_size {self.effective_batch_size} is not a multiple of batch_size {self.batch_size}"
            )
        if self.load_in_4bit and self.adapt_vision:
            raise ValueError("load_in_4bit supports LoRA on the language model only; drop adapt_vision")
        for tokens, crops in (("photo_tokens", "num_crops"), ("more_photo_tokens", "more_crops")):
            if getattr(self, tokens) and getattr(self, crops) != type(self).model_fields[crops].default:
                raise ValueError(f"{tokens} and {crops} set the same thing; give one of them")
        usual = type(self).model_fields["num_crops"].default
        if self.looks and (self.photo_tokens or self.num_crops not in (usual, self.looks[1])):
            other = "photo_tokens" if self.photo_tokens else "num_crops"
            raise ValueError(f"looks and {other} both set the resolution of photos; drop {other}")
        return self

    @property
    def close_crops(self) -> int:
        """Crops of the main photo at its closest look."""
        return self.looks[1] if self.looks else self.num_crops

    @property
    def budget_names(self) -> tuple[str, str]:
        """The settings that determine the resolution of the main photo and of further ones."""
        fields = type(self).model_fields
        main = "photo_tokens" if self.num_crops == fields["num_crops"].default else "num_crops"
        main = "looks" if self.looks else main
        return main, "more_photo_tokens" if self.more_crops == fields["more_crops"].default else "more_crops"


class MergeSettings(Settings):
    """Writing an adapter and its base as one merged checkpoint."""

    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="Type of the written weights")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    max_new_tokens: int = Field(default=48, ge=1, description="Maximum length of the compared answers in tokens")
