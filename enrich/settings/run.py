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
    """The cluster that the Ray runner uses."""

    address: str | None = Field(
        default=None,
        description="host:port of its head node, or auto on any of its nodes; null: RAY_ADDRESS, else this machine",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Number of engines; null: one for each GPU, or for each core if there is no GPU"
    )


class ProductColumns(Settings):
    """Names of the columns of a products table (`--products`)."""

    product_id: str = Field(default="product_id", min_length=1)
    photos: str = Field(
        default="photos", min_length=1, description="Keys of the photos in order: a list, or text separated by |"
    )


class GateSettings(Settings):
    """Limits beyond which a run is not published to products.parquet. Shares are 0..1."""

    enabled: bool = Field(default=True, description="false: every run is published")
    min_rows: int = Field(default=50, ge=1, description="In a smaller run shares do not count, unless they are 1")
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
        description="Share of answered products that are gone from the source; a half if fewer than min_rows",
    )
    max_failed: float = Field(default=0.20, ge=0, le=1, description="Share of failed products")
    max_unknown_category: float = Field(
        default=0.10, ge=0, le=1, description="Share of answers whose category is not in the taxonomy"
    )
    max_review_rise: float = Field(default=0.30, ge=0, le=1, description="Increase of the share that needs review")
    max_category_shift: float = Field(
        default=0.50, ge=0, le=1, description="Total variation distance from the last run's category mix"
    )
    max_price_shift: float = Field(default=1.0, ge=0, description="Absolute change of the log of the median price")


class RunSettings(Settings):
    """One pass over a bucket."""

    engine: Literal["auto", "vllm", "transformers"] = Field(
        default="auto", description="auto: vLLM if there is a GPU and it is installed, else transformers"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    runner: Literal["inline", "ray"] = Field(
        default="inline", description="inline: one process answers shard by shard; ray: the workers of a Ray cluster"
    )
    ray: RaySettings = RaySettings()
    shard_size: int = Field(default=2048, ge=1, title="Products in a shard", description="Unit of retry and of commit")
    batch_size: int = Field(default=16, ge=1, description="Photos in one forward pass of the transformers engine")
    max_new_tokens: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Maximum length of an answer in tokens; null: what the adapter's prompt says",
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        description="Hub id or directory of the adapter's base, if it is no longer where the adapter says",
    )
    served: Literal["merged", "lora"] = Field(
        default="merged", description="vLLM: the adapter merged into its base, which is faster, or loaded as LoRA"
    )
    quantization: Literal["none", "fp8"] = Field(default="none", description="vLLM: quantization of the weights")
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="vLLM: type of the KV cache, 0.39 MB a token in the full-size model in bf16"
    )
    vllm: dict[str, bool | int | float] = Field(
        default={},
        title="vLLM",
        description="Numbers and switches of vLLM's EngineArgs that enrich does not set itself: gpu_memory_utilization "
        "(0.9), max_num_seqs and max_num_batched_tokens (chosen by the GPU's memory), and others",
    )
    download_threads: int | None = Field(default=None, ge=1, description="null: 16 more than decoding processes")
    decode_processes: int | None = Field(default=None, ge=1, description="null: 2 to 16, by the machine's cores")
    in_flight: int = Field(default=64, ge=1, description="Decoded photos that may wait for the engine; bounds memory")
    max_attempts: int = Field(
        default=3, ge=1, le=100, description="Attempts at a product whose failure may be temporary"
    )
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
        description="Number of a product's photos that the model sees, in several prompts if they do not fit one; "
        "null: the adapter's photos_per_product, in one prompt",
    )
    refresh: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of products of earlier adapters that a run answers again; null: all of them",
    )
    skip: tuple[str, ...] = Field(
        default=SIDECARS,
        description="Files that are not photos and are skipped: names with * and ?, case-insensitive",
    )
    machine_price_per_hour: float | None = Field(
        default=None, gt=0, description="For the cost of a run in its report, in run.json and in --dry-run"
    )
    machine_currency: str | None = Field(
        default=None, pattern="^[A-Z]{3}$", description="Currency code of that price, such as USD"
    )
    serve_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s<>()\[\]\"'`\\@?#]+$",
        description="Address of an `enrich serve` of this output, such as http://pages.shop.example:8420; Prefect's "
        "artifacts link to it",
    )
    link_hours: float = Field(
        default=24.0,
        ge=0,
        le=168,
        description="For an output in S3 without serve_url: lifetime of the presigned links to report and review page "
        "in Prefect's artifacts, with which anyone can read these pages; 0: no links",
    )
    sink: SinkName | None = Field(
        default=None,
        description="An external table to which every command that publishes commits products.parquet, from this run "
        "on; null: as earlier runs set it",
    )
    sink_catalog: str = Field(
        default="default", min_length=1, description="The sink's catalog, by its name in pyiceberg's configuration"
    )
    sink_table: str = Field(
        default="enrich.products", pattern=r"^[^.\s]+([.][^.\s]+)+$", description="The sink's table: namespace.table"
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
