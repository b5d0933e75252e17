"""Kinds of fields: each a module, and the one of docs/extending.md works as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.fields import Field
from enrich.answers.grammar import answer_grammar
from enrich.answers.kinds import KINDS
from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import make_prompt, render_answer
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.phi3_vision.processing import END
from enrich.settings.fields import FieldSettings

ROOT = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path
from enrich.answers.grammar import answer_grammar
from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import taught_answer
from enrich.answers.token_evidence import AnswerTokens
from enrich.catalog.taught import read_taught, taught_prompt
from enrich.models.checkpoint import load_processor
from enrich.settings.training import TrainSettings

settings = TrainSettings.model_validate({"fields": {"waterproof": {"kind": "flag"}}})
catalog = read_taught(Path("catalog"), settings)
prompt = taught_prompt(settings, catalog, catalog.products)
processor = load_processor(Path("BASE"))
tokenizer = processor.tokenizer
allowed = answer_grammar(AnswerTokens(tokenizer, prompt, processor.stop_tokens[0]))
for product in catalog.products:
    text = taught_answer(prompt, product)
    assert parse_answer(text, prompt).attributes == product.attributes
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert all(token in allowed(ids[:at]) for at, token in enumerate(ids))
    print(product.attributes["waterproof"])
try:
    parse_answer(text.replace("unknown", "perhaps"), prompt)
except AnswerMalformed:
    print("refused")
"""


def test_a_kind_of_field_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "enrich", tmp_path / "enrich", ignore=shutil.ignore_patterns("phi3v-tiny", "__pycache__"))
    section = (ROOT / "docs" / "extending.md").read_text("utf-8").partition("## A kind of field")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    (tmp_path / "enrich/answers/kinds/flag.py").write_text(code[1])
    (tmp_path / "catalog/images").mkdir(parents=True)
    (tmp_path / "catalog/images/a.jpg").write_bytes(b"a photo")
    rows = [f"{n},Boot {n},BOOTS,9,EUR,images/a.jpg,{cell}" for n, cell in enumerate(("TRUE", "no", ""))]
    header = "product_code,title,category3_code,full_price,currency_code,local_image_path,waterproof"
    (tmp_path / "catalog/catalog.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "program.py").write_text(PROGRAM.replace("BASE", str(ROOT / "enrich/assets/phi3v-tiny")))

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["yes", "no", "None", "refused"], done.stderr


def test_settings_offer_the_kinds_that_there_are() -> None:
    assert FieldSettings.model_json_schema()["properties"]["kind"]["enum"] == list(KINDS)
    assert list(KINDS) == ["choice", "number", "text"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("6,50", "6.5"), ("007", "7"), ("１２．５", "12.5"), ("6.666", None), ("0.125", "0.12"), ("1,234", None),
        ("12.3456", "12.35"), ("0", "0"), ("000", "0"), ("\u0660", "0"), ("0.00", "0"), ("-3", None), ("6 cm", None),
        ("12345678901", None), (None, None), ("999999999", "999999999"), ("999999999.999", None), ("0.001", None),
        ("1 234", "1234"), ("1'234", "1234"), ("1.234.567", "1234567"), ("1.234,50", "1234.5"), ("12.", "12"),
        ("\u0661\u0662\u066b\u0665", "12.5"), ("\u20ac5", None), ("5 EUR", None), ("1.5.2", None), ("\u00bd", None),
    ],
)  # fmt: skip
def test_numbers_of_catalogs_keep_two_decimals(cell: str | None, value: str | None) -> None:
    [read], told = KINDS["number"].read("heel", [cell])
    assert read == value
    assert bool(told) is (cell is not None and value is None)


@pytest.mark.parametrize(
    ("decimals", "value", "may"),
    [
        (1, "6.5", True), (1, "6", True), (1, "0.5", True), (1, "6.55", False), (2, "6.55", True), (2, "12.05", True),
        (1, "6.", False), (1, ".5", False), (0, "6.5", False), (2, "1234567.25", True), (2, "unknown", True),
    ],
)  # fmt: skip
def test_a_number_has_the_decimals_of_its_catalog(
    tokenizer: PreTrainedTokenizerBase, decimals: int, value: str, may: bool
) -> None:
    heel = Field(name="heel", kind="number", label="Heel", column="heel", decimals=decimals)
    prompt = make_prompt(("BAGS", "HATS"), "EUR", others=[heel])
    allowed = answer_grammar(AnswerTokens(tokenizer, prompt, END))
    text = render_answer(prompt, "Hat", "HATS", 12, {"heel": value})
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.convert_tokens_to_ids(END)]
    assert all(token in allowed(ids[:at]) for at, token in enumerate(ids)) is may
    if may:
        assert parse_answer(text, prompt).attributes == {"heel": None if value == "unknown" else value}
    else:
        with pytest.raises(AnswerMalformed):
            parse_answer(text, prompt)


def test_only_a_number_has_decimals() -> None:
    with pytest.raises(ValueError, match="field colour is a text; only a number has decimals"):
        Field(name="colour", kind="text", label="Colour", column="colour", decimals=1)


def test_a_number_may_be_0_and_a_price_may_not(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = Field(name="pieces", kind="number", label="Pieces", column="pieces")
    prompt = make_prompt(("BAGS", "HATS"), "EUR", others=[pieces])
    allowed = answer_grammar(AnswerTokens(tokenizer, prompt, END))

    def permitted(text: str) -> bool:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return all(token in allowed(ids[:at]) for at, token in enumerate(ids))

    for pieces_said, price, may in (("0", "12", True), ("10", "12", True), ("00", "12", False), ("2", "0", False)):
        text = render_answer(prompt, "Hat", "HATS", 12, {"pieces": pieces_said}).replace(": 12", f": {price}")
        assert permitted(text) is may, text
