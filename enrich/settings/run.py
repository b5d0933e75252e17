"""Settings of runs."""

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from enrich.settings.base import Settings
from enrich.settings.photos import SIDECARS, GroupBy, PhotoLimits
from enrich.settings.review import ReviewSettings
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.vocabulary import MOST_PHOTOS

NO_SINK = "none"
# Each is a module, which this package does not import.
_SINKS = [name for _, name, _ in iter_modules([str(Path(__file__).parents[1] / "output" / "sinks")]) if name != "base"]


def _known_sink(sink: str) -> str:
    if sink not in (*_SINKS, NO_SINK):
        raise ValueError(f"Input should be one of {', '.join(_SINKS)}, or {NO_SINK}")
    return sink


SinkName = Annotated[str, AfterValidator(_known_sink), Field(json_schema_extra={"enum": list[Any]([*_SINKS, NO_SINK])})]


class RaySettings(Settings):
    """The cluster of the runner ray."""

    address: str | None = Field(
        default=None,
        description="host:port of its head node, or auto on any of its nodes; left out: RAY_ADDRESS, else this machine",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Engines at a time; left out: one a GPU, or where there is no GPU one a core"
    )


class ProductColumns(Settings):
    """Which column of a products table (`--products`) holds what."""

    product_id: str = Field(default="product_id", min_length=1)
    photos: str = Field(
        default="photos", min_length=1, description="Keys of the photos in order: a list, or a text with | between them"
    )


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
        description="Answered products that are gone from the source; of fewer than min_rows, half may be",
    )
    max_failed: float = Field(default=0.20, ge=0, le=1, description="Share of failed products")
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
    shard_size: int = Field(default=2048, ge=1, title="Products in a shard", description="Unit of retry and of commit")
    batch_size: int = Field(default=16, ge=1, description="Photos in one forward pass of the transformers engine")
    max_new_tokens: int | None = Field(
        default=None,
        ge=8,
        description="Length of an answer at most, in tokens; left out: what the adapter's prompt says",
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        description="The adapter's base, where it is no longer where the adapter says: a hub id or directory",
    )
    served: Literal["merged", "lora"] = Field(
        default="merged", description="vLLM: the adapter added into its base's weights, which is faster, or beside them"
    )
    quantization: Literal["none", "fp8"] = Field(default="none", description="vLLM: the weights' precision")
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="vLLM: of keys and values, 0.39 MB a token of the full-size model in bf16"
    )
    vllm: dict[str, bool | int | float] = Field(
        default={},
        title="vLLM",
        description="Numbers and switches of vLLM's EngineArgs that enrich does not set itself: gpu_memory_utilization "
        "(0.9), max_num_seqs and max_num_batched_tokens (by the GPU's memory), and others",
    )
    download_threads: int | None = Field(default=None, ge=1, description="Left out: 16 more than decoding processes")
    decode_processes: int | None = Field(default=None, ge=1, description="Left out: by the machine's cores, 2 to 16")
    in_flight: int = Field(default=64, ge=1, description="Decoded photos waiting for the engine; bounds memory")
    max_attempts: int = Field(default=3, ge=1, le=100, description="Tries of a product whose failure may pass")
    group_by: GroupBy = Field(
        default="photo",
        description="Which photos make a product: photo (each is one), folder (those of a folder), or a regular "
        "expression on the whole key with a group product_id",
    )
    products: ProductColumns = ProductColumns()
    photos_answered: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PHOTOS,
        description="Photos of a product that the model sees, in several prompts if one does not show so many; left "
        "out: those of one prompt, the adapter's photos_per_product",
    )
    refresh: int | None = Field(
        default=None,
        ge=0,
        description="How many products of an earlier adapter a run answers again at most; left out: all of them",
    )
    skip: tuple[str, ...] = Field(
        default=SIDECARS,
        description="Files that are not photos, left out of the listing: names with * and ?, in upper or lower case",
    )
    machine_price_per_hour: float | None = Field(
        default=None, gt=0, description="For the cost of a run, in its report, in run.json and by --dry-run"
    )
    machine_currency: str | None = Field(
        default=None, pattern="^[A-Z]{3}$", description="Code of the currency of that price, such as USD"
    )
    serve_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s<>()\[\]\"'`\\@?#]+$",
        description="Where people reach `enrich serve` of this output, such as http://pages.shop.example:8420; the "
        "artifacts of Prefect link to it",
    )
    link_hours: float = Field(
        default=24.0,
        ge=0,
        le=168,
        description="For an output in S3 without serve_url: how long the links to report and review page in Prefect's "
        "artifacts let anyone who has them read those pages; 0: no such links",
    )
    sink: SinkName | None = Field(
        default=None,
        description="A table elsewhere that gets each state of products.parquet from this run on, by any command that "
        "publishes; left out: as runs before said",
    )
    sink_catalog: str = Field(
        default="default", min_length=1, description="Of the sink, by its name in the configuration of pyiceberg"
    )
    sink_table: str = Field(
        default="enrich.products", pattern=r"^[^.\s]+([.][^.\s]+)+$", description="Of the sink, namespace.table"
    )
    limits: PhotoLimits = PhotoLimits()
    s3: S3Settings = PLAIN_S3
    review: ReviewSettings = ReviewSettings()
    gate: GateSettings = GateSettings()

    @field_validator("base")
    @classmethod
    def _base_from_here(cls, base: str | None) -> str | None:
        """A directory as an absolute path: processes on other machines have another working directory."""
        return str(Path(base).expanduser().absolute()) if base and Path(base).expanduser().is_dir() else base
