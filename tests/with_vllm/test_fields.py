"""Five further fields in two languages: vLLM and transformers write the same answers, with and without the grammar."""

from dataclasses import replace
from pathlib import Path

import pytest

from enrich.answers.fields import Field
from enrich.answers.parse import parse_answer
from enrich.answers.prompt import make_prompt
from enrich.engines.adapter import read_adapter
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import load_engine
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from enrich.vocabulary import Language
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import check_same, request, settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PHOTOS, TOKENS = 8, 160
WORDS = {
    "en": (("BAGS", "HATS", "HATS AND CAPS"), ("Colour", "Fabric", "Sleeve", "Note", "Pieces"), ("Red", "Dark Red")),
    "ja": (("バッグ", "帽子", "帽子・キャップ"), ("色", "素材", "袖", "備考", "個数"), ("赤", "濃い赤")),
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_same_answers_as_transformers(tmp_path: Path, language: Language) -> None:
    categories, labels, values = WORDS[language]
    kinds = ("choice", "choice", "choice", "text", "number")
    others = [
        Field(
            name=f"field_{n}",
            kind=kind,
            label=label,
            column=label,
            values=values if kind == "choice" else (),
            decimals=1 if kind == "number" else 0,
        )
        for n, (kind, label) in enumerate(zip(kinds, labels, strict=True))
    ]
    prompt = make_prompt(categories, "JPY", language=language, others=others, max_new_tokens=TOKENS)
    directory = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=4)
    (directory / "prompt.json").write_text(prompt.model_dump_json())
    adapter = replace(read_adapter(directory), prompt=prompt)
    transformers = load_engine(adapter, RunSettings(device="cpu", max_new_tokens=TOKENS))
    vllm = start_engine(adapter, settings(max_new_tokens=TOKENS))
    try:
        for grammar in (False, True):
            got = list(vllm.complete(map(request, range(PHOTOS)), grammar=grammar))
            check_same(got, list(transformers.complete(map(request, range(PHOTOS)), grammar=grammar)))
    finally:
        vllm.close()
    whole = [parse_answer(answer.text, prompt) for answer in got if answer.finished]
    assert whole, "no answer ended within its budget"
    for answer in whole:
        assert answer.category in categories
        assert all(answer.attributes[f"field_{n}"] in (*values, None) for n in range(3))
