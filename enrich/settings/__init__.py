"""Every setting, its default and its limits. Frozen; an unknown key is an error."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from enrich.errors import UsageError
from enrich.settings.plain_yaml import read_yaml

AUTO = "auto"
# What cameras, editors, desktops, shops and exports leave beside photos. A photo without an extension stays one.
SIDECARS = (
    "*.json", "*.jsonl", "*.ndjson", "*.xml", "*.xmp", "*.yaml", "*.yml", "*.txt", "*.csv", "*.tsv", "*.md", "*.log",
    "*.ini", "*.md5", "*.sha1", "*.sha256", "*.parquet", "*.db", "*.lnk", "*.url", "._*", ".DS_Store", ".directory",
    ".nomedia", ".gitkeep", ".keep", "_SUCCESS", "*_$folder$",
)  # fmt: skip
TINY_MODEL = "phi3v-tiny"
TINY_MODEL_PATH = Path(__file__).parents[1] / "assets" / TINY_MODEL
PHI3_VISION = "microsoft/Phi-3-vision-128k-instruct"
PHI3_VISION_REVISION = "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed"


Tracker = Literal["wandb", "mlflow", "trackio", "tensorboard"]


_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength")


def name_limits(schema: dict[str, Any]) -> None:
    """In the JSON schema of a model, put the limits of a field that may be empty beside its types.

    A form then says `0 is less than the minimum of 1`. Within `anyOf`, where pydantic leaves them, it only says that
    the value `is not valid under any of the given schemas`.
    """
    for field in schema.get("properties", {}).values():
        if {"type": "null"} in field.get("anyOf", ()):
            for kind in field["anyOf"]:
                field.update({name: kind.pop(name) for name in _LIMITS if name in kind})


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=name_limits)


class Columns(Settings):
    """Which column of a catalog table holds what. The defaults are the tutorial's data set."""

    product_code: str = "product_code"
    title: str = "title"
    category: tuple[str, ...] = Field(
        default=("category3_code", "category2_code", "category1_code"),
        description="First column whose value is neither empty nor N.A. names the category",
    )
    price: str = "full_price"
    currency: str = "currency_code"
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Decimal mark of ambiguous prices such as 1.299; left out: as the other prices show"
    )
    image_path: str = "local_image_path"


class SplitSettings(Settings):
    """Shares of the rows. Products with the same title stay together; train gets the rest."""

    seed: int = 0
    validation: float = Field(default=0.05, gt=0, lt=0.5, description="Chooses the best checkpoint")
    calibration: float = Field(default=0.10, gt=0, lt=0.5, description="Calibrates confidences and price intervals")
    test: float = Field(default=0.10, gt=0, lt=0.5, description="Scores the adapter")


class PhotoLimits(Settings):
    """What a photo from outside may cost. Checked before it is decoded."""

    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
    max_bytes: int = Field(default=32 << 20, gt=0, description="Size of the file")
    max_pixels: int = Field(default=64_000_000, gt=0, description="Width times height")
    max_aspect_ratio: float = Field(default=50.0, ge=1, description="Longer side divided by the shorter one")
    decode_seconds: float = Field(default=20.0, gt=0, description="CPU time that decoding a photo may take")
    decode_memory_bytes: int = Field(default=2 << 30, gt=0, description="Address space that decoding a photo may take")
    decode_total_bytes: int = Field(
        default=4 << 30,
        gt=0,
        description="Of all photos decoded at a time that need more than 256 MiB each; the others may take so much",
    )

    @field_validator("formats")
    @classmethod
    def _pillow_reads_them(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        from PIL import Image  # only where they are set

        Image.init()
        names = tuple(name.strip().upper() for name in formats)
        known = sorted(Image.OPEN)
        for given, name in zip(formats, names, strict=True):
            if name not in known:
                meant = Image.registered_extensions().get(f".{name.lower().lstrip('.')}")
                hint = f"write {meant}" if meant in known else f"choose from {', '.join(known)}"
                raise ValueError(f"{given!r} is no name of a format; {hint}")
        if not names:
            raise ValueError("no format is accepted, so no photo would be; name JPEG at least")
        return names


class SampleSettings(Settings):
    """A generated catalog of product photos."""

    products: int = Field(default=3000, ge=1, le=1_000_000)
    holdout: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Products of a colour x fabric x kind that the catalog never shows, a catalog of their own; "
        "left out: a tenth of the products",
    )
    bucket: int = Field(default=120, ge=1, le=1_000_000, description="Usual photos in the unlabelled bucket")
    seed: int = Field(default=0, ge=0)


class FetchSettings(Settings):
    """Downloading the photos of a table with an image URL column."""

    product_code: str = "product_code"
    image_url: str = "imageurl"
    limits: PhotoLimits = PhotoLimits()
    threads: int = Field(default=16, ge=1, le=256)
    per_host: int = Field(default=8, ge=1, description="Requests to one host at a time")
    connect_seconds: float = Field(default=10.0, gt=0)
    read_seconds: float = Field(default=20.0, gt=0, description="Longest silence within an answer")
    total_seconds: float = Field(
        default=120.0, gt=0, description="Longest time for one try of one photo, from its look-up to its last byte"
    )
    attempts: int = Field(default=4, ge=1, le=20, description="Tries of a photo whose failure may pass")
    backoff_seconds: float = Field(default=0.5, gt=0, description="Longest first wait; doubles with each try")
    max_wait_seconds: float = Field(default=60.0, gt=0, description="Longest wait, whatever Retry-After asks for")
    max_redirects: int = Field(default=5, ge=0, le=20)
    allow_private: bool = Field(default=False, description="Also fetch from loopback, private and link-local addresses")
    proxy: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+/?$",
        description="http://host:port of a proxy, which then decides what may be reached; HTTP_PROXY is not used",
    )
    user_agent: str = "enrich-catalog-fetch/0.1"


class TrainSettings(Settings):
    """Fine-tuning: photo -> title, category, full price, as a LoRA adapter."""

    model: str = Field(
        default=AUTO,
        description=f"Hub id or directory of a Phi-3-vision; {AUTO}: {PHI3_VISION} on a GPU, {TINY_MODEL} without one",
    )
    revision: str | None = Field(default=None, description="Full commit of a hub model; pinned for the default model")
    num_crops: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Crops of 336 pixels that a photo is cut into at most: more detail, more tokens",
    )
    fast_decode: bool = Field(
        default=False, description="Decode large JPEGs at a reduced scale, in training and serving: 1.5 times the rate"
    )
    columns: Columns = Columns()
    allow_dropped: bool = Field(default=False, description="Train even if more than a tenth of the rows is left out")
    split: SplitSettings = SplitSettings()
    limits: PhotoLimits = PhotoLimits()

    lora_r: int = Field(default=16, ge=1, description="Rank of the LoRA matrices")
    lora_alpha: int = Field(default=32, ge=1, description="LoRA updates are scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the LoRA layers' inputs")
    target_modules: tuple[str, ...] = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    adapt_vision: bool = Field(
        default=False, description="LoRA on the vision tower and the projector too; served merged, features not cached"
    )
    use_rslora: bool = Field(default=False, description="Scale by lora_alpha / sqrt(lora_r), for high ranks")
    use_dora: bool = Field(default=False, description="Weight-decomposed LoRA; served merged")
    load_in_4bit: bool = Field(default=False, description="QLoRA: the frozen base in NF4, for a GPU of 16 GB")

    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate")
    output_learning_rate: float | None = Field(
        default=None, gt=0, description="Adds LoRA on the output layer, learned at this rate: new words come from there"
    )
    price_weight: int = Field(
        default=1, ge=1, le=16, description="How many times a digit of the price counts in the loss, a word once"
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm")
    epochs: float = Field(default=3.0, gt=0, description="Passes over the training split")
    batch_size: int = Field(default=8, ge=1, description="Photos in one forward pass")
    effective_batch_size: int = Field(default=16, ge=1, description="Photos in one optimiser step")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for activations, more time")
    compile: bool | None = Field(
        default=None, description="torch.compile the layers; left out: on a GPU where the run is long enough to pay"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto", description="auto: flash-attention where it is installed, else torch's own kernels"
    )
    cache_vision_features: bool = Field(default=True, description="Compute the frozen tower's features once")
    evaluations: int = Field(default=4, ge=1, description="Generation-based evaluations of the validation split")
    patience: int = Field(default=3, ge=1, description="Evaluations without improvement before an early stop")
    max_new_tokens: int = Field(default=64, ge=8, description="Length of an answer at most, in tokens")
    max_length: int = Field(default=4096, ge=64, le=4096, description="LongRoPE: longer changes every answer")
    max_minutes: float | None = Field(default=None, gt=0, description="Stop after this time and keep the best so far")
    seed: int = 3
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    report_to: tuple[Tracker, ...] = Field(
        default=(), description="Experiment trackers: none, wandb, mlflow, trackio, tensorboard, or a list of them"
    )
    run_name: str | None = Field(default=None, min_length=1, description="Of the run at the trackers; else the time")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, value: object) -> object:
        return () if value in (None, "none") else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainSettings":
        if self.effective_batch_size % self.batch_size:
            raise ValueError(
                f"effective_batch_size {self.effective_batch_size} is no multiple of batch_size {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _four_bits_are_plain(self) -> "TrainSettings":
        if self.load_in_4bit and (self.adapt_vision or self.use_dora):
            raise ValueError("load_in_4bit goes with LoRA on the language model only; drop adapt_vision and use_dora")
        return self


class MergeSettings(Settings):
    """Writing an adapter and its base as one checkpoint."""

    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="Of the written weights")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    max_new_tokens: int = Field(default=48, ge=1, description="Of the answers that are compared")


class S3Settings(Settings):
    """What an S3 bucket asks for beyond credentials, region and endpoint, which are found the standard way."""

    requester_pays: bool = Field(default=False, description="Pay for reading buckets of others")
    encryption: Literal["AES256", "aws:kms"] | None = Field(default=None, description="Left out: as the bucket says")
    kms_key_id: str | None = Field(default=None, description="The key of aws:kms; left out: the account's own")
    lock: bool = Field(
        default=False, description="Publish under a lock object, where the endpoint honours If-None-Match only"
    )


PLAIN_S3 = S3Settings()


class RaySettings(Settings):
    """The cluster of the runner ray."""

    address: str | None = Field(
        default=None,
        description="host:port of its head node, or auto on any of its nodes; left out: RAY_ADDRESS, else this machine",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Engines at a time; left out: one a GPU, or where there is no GPU one a core"
    )
    cpus: int | None = Field(default=None, ge=1, description="Cores of a worker; left out: 4 beside a GPU, else 1")


class TitleRules(Settings):
    """Rules that flag a title for review."""

    min_words: int = Field(default=1, ge=1, description="Words that a title has at least")
    max_characters: int = Field(default=150, ge=1, description="Google Merchant Center cuts longer ones")
    forbidden_words: tuple[str, ...] = Field(
        default=("sale", "discount", "free shipping", "best price", "buy now", "guaranteed"),
        description="Words and phrases that shops are refused for",
    )
    scripts: tuple[str, ...] = Field(default=(), description="LATIN, CYRILLIC, GREEK ...; empty: any")
    max_repeats: int = Field(default=2, ge=1, description="A word more often than this, or twice in a row")
    brands: tuple[str, ...] = Field(default=(), description="Names that are brands")
    allowed_brands: tuple[str, ...] = Field(default=(), description="Those of them that titles may hold")
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


class GateSettings(Settings):
    """Limits past which products.parquet is held back. Shares are 0..1."""

    enabled: bool = Field(default=True, description="False: every run is published")
    min_rows: int = Field(default=50, ge=1, description="A smaller run is not judged by shares, unless they are 1")
    allow_weak_adapter: bool = Field(
        default=False, description="Publish runs of an adapter that is no better than guessing without a photo"
    )
    allow_same_title: bool = Field(
        default=False, description="Publish a run of 10 or more answers that all have the same title"
    )
    max_gone: float = Field(
        default=0.20,
        ge=0,
        le=1,
        description="Answered photos that are gone from the source; of fewer than min_rows, half may be",
    )
    max_failed: float = Field(default=0.20, ge=0, le=1, description="Share of failed photos")
    max_unknown_category: float = Field(
        default=0.10, ge=0, le=1, description="Share of answers whose category is not in the taxonomy"
    )
    max_review_rise: float = Field(default=0.30, ge=0, le=1, description="Rise of the share that needs review")
    max_category_shift: float = Field(default=0.50, ge=0, le=1, description="Total variation from the last run's mix")
    max_price_shift: float = Field(default=1.0, ge=0, description="Absolute change of the log median price")


class RunSettings(Settings):
    """One pass over a bucket."""

    engine: Literal["auto", "vllm", "transformers"] = Field(
        default="auto", description="auto: vLLM on a GPU where it is installed, else transformers"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    runner: Literal["inline", "ray"] = Field(
        default="inline", description="inline: one process answers shard by shard; ray: the workers of a Ray cluster"
    )
    ray: RaySettings = RaySettings()
    shard_size: int = Field(default=2048, ge=1, title="Photos in a shard", description="Unit of retry and of commit")
    batch_size: int = Field(default=16, ge=1, description="Photos in one forward pass of the transformers engine")
    max_new_tokens: int = Field(default=64, ge=8, description="Length of an answer at most, in tokens")
    base: str | None = Field(
        default=None,
        min_length=1,
        description="The adapter's base, where it is no longer where the adapter says: a hub id or directory",
    )
    served: Literal["merged", "lora"] = Field(
        default="merged", description="vLLM: the adapter added into its base's weights, which is faster, or beside them"
    )
    merged_cache: str | None = Field(
        default=None, description="Where merged weights are kept; left out: merged/ in ENRICH_CACHE, or ~/.cache/enrich"
    )
    quantization: Literal["none", "fp8"] = Field(default="none", description="vLLM: the weights' precision")
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="vLLM: of keys and values, 0.39 MB a token of the full-size model in bf16"
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="vLLM: share of the GPU it may take")
    max_num_batched_tokens: int | None = Field(default=None, ge=1024, description="vLLM: tokens a step; by the GPU")
    max_num_seqs: int | None = Field(default=None, ge=1, description="vLLM: answers written at a time; by the GPU")
    engine_in_flight: int | None = Field(
        default=None, ge=1, description="vLLM: photos given to it at a time, 1.4 MB each; 1.25 x max_num_seqs"
    )
    download_threads: int | None = Field(default=None, ge=1, description="Left out: 16 more than decoding processes")
    decode_processes: int | None = Field(default=None, ge=1, description="Left out: by the machine's cores, 2 to 16")
    in_flight: int = Field(default=64, ge=1, description="Decoded photos waiting for the engine; bounds memory")
    parity_rows: int = Field(
        default=32,
        ge=0,
        description="vLLM: photos to compare with transformers before an adapter's first run; 0: none",
    )
    max_attempts: int = Field(default=3, ge=1, le=100, description="Tries of an image whose failure may pass")
    product_id_pattern: str = Field(
        default=r"(?:.*/)?(?P<product_id>[^/]+?)(?:\.[^./]*)?$",
        description="Regular expression on the key with a group product_id; the default is the file's stem",
    )
    skip: tuple[str, ...] = Field(
        default=SIDECARS,
        description="Files that are no photos, left out of the listing: names with * and ?, in upper or lower case",
    )
    machine_price_per_hour: float | None = Field(
        default=None, gt=0, description="For what a run costs: in its report, and expected by --dry-run"
    )
    machine_currency: str = Field(default="USD", min_length=1, max_length=8)
    limits: PhotoLimits = PhotoLimits()
    s3: S3Settings = PLAIN_S3
    review: ReviewSettings = ReviewSettings()
    gate: GateSettings = GateSettings()

    @field_validator("base")
    @classmethod
    def _base_from_here(cls, base: str | None) -> str | None:
        """A directory in full: processes on other machines start elsewhere."""
        return str(Path(base).expanduser().absolute()) if base and Path(base).expanduser().is_dir() else base

    @field_validator("product_id_pattern")
    @classmethod
    def _pattern_names_the_product(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if "product_id" not in groups:
            raise ValueError(f"{pattern!r} has no group (?P<product_id>...)")
        return pattern


S = TypeVar("S", bound=Settings)


# The sections that a settings file may have, by command.
SECTIONS: dict[str, type[Settings]] = {
    "finetune": TrainSettings,
    "run": RunSettings,
    "merge": MergeSettings,
    "review": Columns,
    "catalog fetch": FetchSettings,
}
# All commands that read --config. These others have sections of their own too, or share `run`.
COMMANDS = SECTIONS | dict.fromkeys(("score", "publish", "rollback", "rebuild", "tidy", "doctor"), RunSettings)


def load_settings(cls: type[S], path: str | Path | None = None, command: str | None = None, **overrides: object) -> S:
    """Settings from defaults, then a YAML file, then `overrides` (those that are None are left out).

    The file holds the settings themselves, or those of several commands below their names, of which `command` reads
    its own.

    Raises:
        UsageError: the file cannot be read, is no mapping, or has an unknown key or a value out of range.
    """
    values = {} if path is None else read_yaml(Path(path))
    source = "settings" if path is None else f"settings file {path}"
    if command is not None:
        values = _own_section(values, cls, command, source)
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        if first["type"] == "extra_forbidden":
            known = ", ".join(_section(cls, first["loc"][:-1]).model_fields)
            raise UsageError(f"{source}: unknown key {where!r}; known keys: {known}") from error
        raise UsageError(f"{source}: {where}: {first['msg']}; change that value") from error


def _own_section(values: dict[str, Any], cls: type[Settings], command: str, source: str) -> dict[str, Any]:
    """What `values` hold for a command: all of them, unless a key names a command and is no setting of its own."""
    sections = [key for key in values if key in COMMANDS and key not in cls.model_fields]
    if not sections:
        return values
    if stray := [key for key in values if key not in COMMANDS]:
        raise UsageError(f"{source}: key {stray[0]!r} is outside of the sections; move it below a command's name")
    name = command if command in values or cls is not RunSettings else "run"
    section = values.get(name)
    if not isinstance(section, dict | None):
        raise UsageError(f"{source}: {name}: settings are expected below it, not {section!r}; write `key: value` lines")
    return dict(section or {})


def _section(cls: type[Settings], names: Sequence[int | str]) -> type[Settings]:
    """The settings class that the nested keys `names` lead to."""
    for name in names:
        nested = cls.model_fields[str(name)].annotation
        assert isinstance(nested, type)  # every field that is a mapping is a Settings class
        cls = nested
    return cls
