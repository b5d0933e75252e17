"""The parts of DATA.md that `docs.reference` writes: what every column means, and Athena's table definitions."""

import pyarrow as pa

from docs.markdown import table
from enrich.output.schema import PRODUCTS_SCHEMA, REVIEW_SCHEMA, ROW_SCHEMA
from enrich.vocabulary import ErrorKind, PhotoIssue, ReviewReason

MEANINGS = {
    "product_id": "Identifies the row. Derived from photo keys by the setting group_by, or from a products table",
    "status": "`ok` or `failed`",
    "title": "Generated title, or a person's. Null if failed or rejected",
    "category": "A label of the adapter's taxonomy, or a person's. Null if failed or rejected",
    "category_path": "The levels of a category that is a path, the broadest first, down to the last one whose own "
    "confidence reaches the review threshold; all of them if a person decided. Empty if not even the first "
    "does, null if categories are leaves",
    "category_id": "The category's id in the standard that `taxonomy` names. Null if there is none",
    "category_confidence": "Probability, 0..1, that the category is right; calibrated on held-out products",
    "category_alternatives": "Up to three other labels with their calibrated probabilities, most probable first",
    "price": "Full price in units of `currency`. Null if the model answers `unknown`",
    "price_low": "Lower end of the 90 % interval, in units of `currency`",
    "price_high": "Upper end of the 90 % interval, in units of `currency`",
    "currency": "ISO 4217 code of the catalog",
    "attributes": "The answers to further fields by field name, the model's or a person's; a null value means "
    "`unknown`. In decisions only the fields that a person decided, null if the photos do not show it",
    "needs_review": "Whether a person should look at the row before it is used",
    "review_reasons": f"Why: {', '.join(f'`{reason}`' for reason in ReviewReason)}",
    "photos": "All photos of the product in order, the main photo first. `etag` is the version of the bytes that "
    "were read; `sha256`, `width` and `height` are null if none were read, `error_kind` if nothing was wrong. "
    f"`photo_issues` ({', '.join(f'`{issue}`' for issue in PhotoIssue)}), the last member, never exclude a photo; "
    "null if the photo was not decoded, or if an earlier version wrote the row",
    "photos_answered": "Number of photos that the model was shown",
    "looks": "How often it was shown them: 2 if the adapter looks twice and the first look left doubts, else 1. Null "
    "if it was shown none, or if an earlier version wrote the row",
    "error_kind": f"Why it failed: {', '.join(f'`{kind}`' for kind in ErrorKind)}",
    "error_message": "The failure in one readable line",
    "attempt": "1 for the first attempt at these photos with this fingerprint",
    "model": "The base model: a hub id or a name",
    "adapter": "Id of the adapter, a hash of its contents",
    "prompt_version": "Version of prompt and answer template",
    "fingerprint": "Hash of model, revision, adapter, prompt, crops and schema version: what would change an answer",
    "engine": "`vllm` or `transformers`",
    "run_id": "The run that produced the row",
    "shard": "The run's shard that contains the row",
    "prompt_tokens": "Tokens of the prompts, images included. Null if the model was not run",
    "output_tokens": "Tokens of the answers. Null if the model was not run",
    "processed_at": "When the product was answered (UTC)",
    "digital_source_type": "The label that Google Merchant Center requires of generated titles",
    "schema_version": "Version of the columns up to here",
    "in_source": "False once the product is gone from the bucket or from the products table",
    "last_photos_etag": "Hash of keys and etags at the latest attempt, which may be later than the row shown",
    "last_status": "Status of the latest attempt",
    "last_error_kind": "Error kind of the latest attempt",
    "last_attempt": "Number of the latest attempt",
    "last_run_id": "Run of the latest attempt",
    "reviewed_by": "Who decided. Null if nobody did, or if the photos have changed since",
    "reviewed_at": "When the decision was applied (UTC)",
    "decision": "`accepted`, `edited` or `rejected`",
    "suggested_title": "The model's answer",
    "suggested_category": "The model's answer",
    "suggested_price": "The model's answer",
    "suggested_attributes": "The model's answers",
    "confirmed": "The fields that the person confirmed; a price that is not among them is still an estimate",
    "picked": "`random` or `chosen` if `enrich label` picked the product, else null",
    "suggested_confidence": "The model's `category_confidence`",
    "suggested_price_low": "The model's answer",
    "suggested_price_high": "The model's answer",
    "suggested_confidences": "The model's confidences in the further fields",
    "sequence": "Orders decisions: a product's highest one was applied last",
}

_TABLES = (
    ("Rows: `history/**/*.parquet` and `products.parquet`", list(ROW_SCHEMA)),
    ("Only in `products.parquet`", list(PRODUCTS_SCHEMA)[len(ROW_SCHEMA) :]),
    ("People's decisions: `reviews/*.parquet`", list(REVIEW_SCHEMA)),
)


def _dictionary() -> str:
    """The columns of every table in Markdown."""
    parts = []
    for heading, fields in _TABLES:
        rows = [(f"`{field.name}`", _plain(field.type), MEANINGS[field.name]) for field in fields]
        parts.append(f"### {heading}\n\n{table(('column', 'type', 'meaning'), rows)}")
    return "\n".join(parts)


def _athena() -> str:
    """Athena's definitions of `products` and `history`, for an output at s3://shop/enriched."""
    products = (
        f"CREATE EXTERNAL TABLE products (\n{_declared(PRODUCTS_SCHEMA)}\n)\n"
        "ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'\n"
        "STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'\n"
        "OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'\n"
        "LOCATION 's3://shop/athena/products/'"
    )
    history = (
        f"CREATE EXTERNAL TABLE history (\n{_declared(ROW_SCHEMA)}\n)\n"
        "STORED AS PARQUET\nLOCATION 's3://shop/enriched/history/'"
    )
    return f"```sql\n{products};\n\n{history};\n```\n"


def data_parts() -> dict[str, str]:
    """By the names of their markers."""
    return {"dictionary": _dictionary(), "athena": _athena()}


def _plain(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"map of {_plain(kind.key_type)} to {_plain(kind.item_type)}"
    if pa.types.is_list(kind):
        return f"list of {_plain(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "struct " + ", ".join(kind.field(i).name for i in range(kind.num_fields))
    return "timestamp, UTC" if pa.types.is_timestamp(kind) else str(kind)


_ATHENA = {"string": "string", "int8": "tinyint", "int16": "smallint", "int32": "int", "float": "float",
           "double": "double", "bool": "boolean"}  # fmt: skip


def _declared(schema: pa.Schema) -> str:
    return ",\n".join(f"  {field.name} {_hive(field.type)}" for field in schema)


def _hive(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"map<{_hive(kind.key_type)},{_hive(kind.item_type)}>"
    if pa.types.is_list(kind):
        return f"array<{_hive(kind.value_type)}>"
    if pa.types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return "struct<" + ", ".join(f"{field.name}: {_hive(field.type)}" for field in fields) + ">"
    return "timestamp" if pa.types.is_timestamp(kind) else _ATHENA[str(kind)]
