"""Fields of the forms that start a flow. What a schedule overrides is flat: schedules merge the top level only."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from enrich.pipeline.adapter_cache import Retrain
from enrich.settings.base import name_limits
from enrich.settings.catalog import Columns, SampleSettings
from enrich.settings.load import load_settings
from enrich.settings.models import AUTO, TINY_MODEL
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings


def _field(title: str, *examples: str, **limits: Any) -> Any:
    # Prefect makes a parameter's name its title and its docstring entry its description; only the extra survives.
    return Field(**limits, json_schema_extra={"title": title, **({"examples": list(examples)} if examples else {})})


_PLACE = "s3://bucket/prefix"
Catalog = Annotated[str, _field("Catalog", _PLACE, min_length=1)]
Photos = Annotated[str, _field("Photos", _PLACE, min_length=1)]
Adapter = Annotated[str, _field("Adapter", _PLACE, min_length=1)]
AdapterInUse = Annotated[str | None, _field("Adapter in use", _PLACE)]
Adapters = Annotated[str, _field("Adapters", _PLACE, min_length=1)]
Output = Annotated[str, _field("Output", _PLACE, min_length=1)]
BaseModelName = Annotated[str, _field("Base model", AUTO, TINY_MODEL, min_length=1)]
RunId = Annotated[str | None, _field("Run id")]
_ONE_OR_MORE = WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "null"}], "minimum": 1})  # see `name_limits`
_ABOVE_0 = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}], "exclusiveMinimum": 0})
Limit = Annotated[int | None, _field("Products at most", ge=1), _ONE_OR_MORE]
HoursAtMost = Annotated[float | None, _field("Hours at most", gt=0), _ABOVE_0]
Inventory = Annotated[str | None, _field("S3 Inventory", "s3://lists/photos/daily/2026-11-22T01-00Z/manifest.json")]
ProductsTable = Annotated[str | None, _field("Products table", "s3://lists/products.parquet")]
Hours = Annotated[float, _field("Hours to decide", gt=0, le=24 * 7)]


class Retraining(BaseModel):
    """When a changed catalog asks for another adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=name_limits)

    rows: int | None = Field(
        default=None, ge=1, title="Rows changed at least", description="Left empty, a twentieth of the catalog"
    )
    days: float = Field(
        default=30.0, gt=0, title="Days at most", description="After these a single changed row is enough"
    )

    def limits(self) -> Retrain:
        """As the pipeline takes it."""
        return Retrain(self.rows, self.days)


class Training(BaseModel):
    """An empty field takes what suits the base model."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=name_limits)

    epochs: float | None = Field(default=None, gt=0, title="Epochs", description="Passes over the training split")
    learning_rate: float | None = Field(default=None, gt=0, title="Learning rate", description="Its peak")
    batch_size: int | None = Field(default=None, ge=1, title="Batch size", description="Photos in one forward pass")
    lora_r: int | None = Field(default=None, ge=1, title="LoRA rank")
    max_minutes: float | None = Field(
        default=None, gt=0, title="Minutes at most", description="Stop after this time and keep the best so far"
    )
    seed: int | None = Field(default=None, title="Seed")
    adapt_vision: bool = Field(
        default=False,
        title="Adapt the vision side too",
        description="LoRA on tower and projector: more memory and time, for photos unlike those of the web",
    )
    load_in_4bit: bool = Field(
        default=False, title="Base in 4 bits", description="QLoRA, for a GPU of 16 GB; not with the vision side"
    )
    report_to: Literal["none", "wandb", "mlflow", "trackio", "tensorboard"] = Field(
        default="none", title="Experiment tracker", description="Gets every step; Weights & Biases also gets photos"
    )
    run_name: str | None = Field(
        default=None, min_length=1, title="Name at the tracker", description="Left empty, the time"
    )
    allow_dropped: bool = Field(
        default=False,
        title="Allow dropped rows",
        description="Train even if more than a tenth of the catalog's rows cannot be used",
    )
    columns: Columns = Field(default=Columns(), title="Columns", description="Which column of the table holds what")

    def settings(self, model: str) -> TrainSettings:
        """All settings of a fine-tuning of `model`. UsageError where the fields do not go together."""
        return load_settings(TrainSettings, model=model, **dict(self))


RetrainForm = Annotated[Retraining, _field("When to train again")]
TrainingForm = Annotated[Training, _field("How to train")]
RunForm = Annotated[RunSettings, _field("How to run")]
SampleForm = Annotated[SampleSettings, _field("How many")]
RETRAIN, TRAINING, RUN, SAMPLE = Retraining(), Training(), RunSettings(), SampleSettings()  # all defaults
