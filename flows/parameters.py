"""Fields of the forms that start a flow: the required locations, and one text for everything else.

In Prefect 3.7.7 a field is 92 pixels high, and everything around the fields 556: a screen of 1,000 pixels shows three
fields and a text of three lines together with the button that starts the run. So the text begins with lines to fill in
for the few things that people set now and then, and takes any other setting below them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator

from enrich.errors import UsageError
from enrich.pipeline.adapter_cache import Retrain
from enrich.settings.base import Settings
from enrich.settings.duration import MOST_DAYS
from enrich.settings.load import COMMANDS, check
from enrich.settings.plain_yaml import line_of, parse_yaml
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.vocabulary import MOST_PHOTOS
from flows.until import check_until

SETTINGS = "Settings"  # label of the text


def _field(title: str, **limits: Any) -> Any:
    # Prefect makes a parameter's name its title and its docstring entry its description; only the extra survives.
    # A description would take 27 pixels more.
    return Field(**limits, json_schema_extra={"title": title})


Catalog = Annotated[str, _field("Catalog: labelled products, a directory or s3://bucket/prefix", min_length=1)]
Photos = Annotated[str, _field("Photos: a directory or s3://bucket/prefix", min_length=1)]
Adapter = Annotated[str, _field("Adapter: one made by finetune-adapter", min_length=1)]
NewAdapter = Annotated[str, _field("Adapter: where to write it; replaces an existing one", min_length=1)]
Adapters = Annotated[str, _field("Adapters: where the nightly flow stores them", min_length=1)]
Candidate = Annotated[str, _field("New adapter", min_length=1)]
Output = Annotated[str, _field("Output: where to write the tables, not among the photos", min_length=1)]
Bucket = Annotated[str, _field("Photos: where to write the unlabelled ones", min_length=1)]
Products = Annotated[int, _field("Products in the catalog", ge=1, le=1_000_000)]
Unlabelled = Annotated[int, _field("Unlabelled products", ge=1, le=1_000_000)]
RunId = Annotated[str | None, _field("Run id")]
Hours = Annotated[float, _field("Hours to decide", gt=0, le=24 * 7)]
# Prefect's UI shows a text of this format as a multi-line code field, and does not validate it.
Text = Annotated[str, Field(json_schema_extra={"title": f"{SETTINGS}: YAML", "format": "json-string"})]

ADHOC = """products at most:
until when:
quality or speed: balanced"""
NIGHTLY = ADHOC
FINETUNE = """until when:
quality or speed: balanced
finetune: {model: auto}"""

Quality = Literal["balanced", "fastest", "most exact"]
# What the choice sets, unless the text says otherwise.
ANSWERING: Mapping[Quality, Mapping[str, object]] = {
    "balanced": {},
    "fastest": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
    "most exact": {"photos_answered": MOST_PHOTOS},
}
LOOKING: Mapping[Quality, Mapping[str, object]] = {
    "balanced": {},
    "fastest": {"num_crops": 1, "fast_decode": True},
    "most exact": {"num_crops": 16},
}


class _Text(Settings):
    """What every text may contain. Aliases are the names in the form; an empty value means none."""

    until: str | None = Field(default=None, alias="until when")
    quality: Quality | None = Field(default=None, alias="quality or speed")

    @field_validator("until", mode="before")
    @classmethod
    def _is_a_time(cls, until: object) -> object:
        return check_until(until)


class Retraining(Settings):
    """How much of a catalog must change before another adapter is trained."""

    rows: int | None = Field(default=None, ge=1, description="Minimum of changed rows; null: a twentieth of all")
    days: float = Field(default=30.0, gt=0, le=MOST_DAYS, description="Days after which a single changed row is enough")

    def limits(self) -> Retrain:
        """For the pipeline."""
        return Retrain(self.rows, self.days)


class _Answering(_Text):
    limit: int | None = Field(default=None, ge=1, alias="products at most")
    products: str | None = Field(default=None, description="Table of the products to process, with their photo keys")
    run: RunSettings = RunSettings()


class AdhocSettings(_Answering):
    """The text of enrich-adhoc."""

    run_id: str | None = Field(default=None, description="Id of an unfinished run to continue")
    inventory: str | None = Field(default=None, description="manifest.json of an S3 Inventory, read instead of listing")


class NightlySettings(_Answering):
    """The text of nightly."""

    adapters: str | None = Field(default=None, description="Where adapters are stored; null: next to the output")
    adapter: str | None = Field(
        default=None, alias="adapter in use", description="One made elsewhere, which serves until a better one exists"
    )
    retrain: Retraining = Retraining()
    finetune: TrainSettings = TrainSettings()


class FinetuneSettings(_Text):
    """The text of finetune-adapter."""

    finetune: TrainSettings = TrainSettings()


T = TypeVar("T", bound=_Text)


def read_text(cls: type[T], text: str, section: str, chosen: Mapping[Quality, Mapping[str, object]]) -> T:
    """The settings in the text of a form, by the rules of a settings file with sections.

    Sections of other commands are allowed and ignored, so that a whole settings file can be pasted.

    Args:
        cls: what the text may contain.
        text: YAML.
        section: the section whose settings the line `quality or speed` sets.
        chosen: what each choice sets, unless the section itself says otherwise.

    Raises:
        UsageError: names the field of the form, the line, and what is wrong there.
    """
    given = parse_yaml(text, SETTINGS)
    known = {field.alias or name: name for name, field in cls.model_fields.items()}
    for key in given:
        homes = [name for name in cls.model_fields if key in _settings_of(cls, name)]
        if key not in known and homes:
            where = f"{SETTINGS}, line {line_of(text, [key])}"
            raise UsageError(f"{where}: {key} is a setting of {' and of '.join(homes)}; write it below `{homes[0]}:`")
    values = {key: value for key, value in given.items() if value is not None and (key in known or key not in COMMANDS)}
    asked = check(cls, values, SETTINGS, text)
    more = chosen[asked.quality or "balanced"]
    if not more:
        return asked
    return check(cls, values | {section: {**more, **values.get(section, {})}}, SETTINGS, text)


def _settings_of(cls: type[Settings], section: str) -> Mapping[str, object]:
    nested = cls.model_fields[section].annotation
    return nested.model_fields if isinstance(nested, type) and issubclass(nested, Settings) else {}
