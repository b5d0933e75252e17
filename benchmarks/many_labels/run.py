"""What a taxonomy of 10,000 paths costs: reading the labels, the grammar, and the judgement of an answer.

    git worktree add ../before COMMIT
    python -m benchmarks.many_labels.run [--before ../before]

Answers have five fields: title, category (a path of four names), colour, fabric, price. They are written by the tiny
base's tokenizer, with eight alternatives a token, so that other labels depart wherever some can. With `--before`, the
path of a checkout of an earlier commit, the same is measured there first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.results import record
from enrich.answers.calibration import Calibration, CategoryCalibration, PriceCalibration
from enrich.answers.completion import TOP_K, Completion
from enrich.answers.fields import Field
from enrich.answers.grammar import answer_grammar, answer_structure
from enrich.answers.postprocess import postprocess
from enrich.answers.prompt import Prompt, make_prompt, render_answer
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.processing import END
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.review import ReviewSettings

COLOURS = ("black", "white", "navy", "dark red", "light blue", "green", "brown", "beige", "pink", "grey")
FABRICS = ("cotton", "wool", "silk", "linen", "leather", "denim", "viscose", "cashmere", "polyester", "velvet")
CALIBRATION = Calibration(
    price=PriceCalibration(
        quantiles={"0.8": 1.3, "0.9": 1.7}, floor=0.1, lowest=5, highest=5000, rows=500, designs=400
    ),
    category=CategoryCalibration(slope=0.9, intercept=0.2, rows=500),
)


def paths(count: int) -> list[str]:
    """Paths of four names, most of whose leaves share a beginning."""
    tops, groups = ("WOMAN", "MAN", "GIRLS", "BOYS", "HOME"), ("CLOTHING", "SHOES", "BAGS", "ACCESSORIES", "BEAUTY")
    kinds = ("SHIRTS", "SHORTS", "SKIRTS", "SHIRT DRESSES", "COATS", "COATS AND JACKETS", "HATS", "HATS AND CAPS")
    leaves = (f"{colour.upper()} {fabric.upper()}" for fabric, colour in product(FABRICS, COLOURS))
    found = (" > ".join(names) for names in product(leaves, tops, groups, kinds))
    ordered = (" > ".join([*names[1:], names[0]]) for names in (one.split(" > ") for one in found))
    return [path for path, _ in zip(ordered, range(count), strict=False)]


def five_fields(labels: Sequence[str]) -> Prompt:
    """The prompt with these categories."""
    others = [
        Field(name="colour", kind="choice", label="Colour", column="colour", values=COLOURS),
        Field(name="fabric", kind="choice", label="Fabric", column="fabric", values=FABRICS),
    ]
    return make_prompt(labels, "EUR", others=others, max_new_tokens=120)


def completions(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, count: int) -> list[Completion]:
    """Answers whose alternatives are, where a label is written, tokens with which others continue."""
    going_on: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for line in tokens.choices["category"].lines:
        for end in range(len(line)):
            going_on[line[:end]].add(line[end])
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        label = tokens.prompt.categories[int(rng.integers(len(tokens.prompt.categories)))]
        values = {"colour": COLOURS[number % 10], "fabric": FABRICS[number // 10 % 10]}
        text = render_answer(tokens.prompt, "Blue cotton shirt with a collar", label, 10 + number, values)
        ids = tokenizer.encode(text, add_special_tokens=False)
        line = tokens.spans(ids).line("category")
        top_ids = rng.integers(300, 1000, (len(ids), TOP_K), dtype=np.int32)
        top_ids[:, 0] = ids
        for position in range(line.start, line.stop):
            others = sorted(going_on[tuple(ids[line.start : position])] - {ids[position]})[: TOP_K - 1]
            top_ids[position, 1 : 1 + len(others)] = others
        top_logprobs = np.tile(np.log([0.9, *[0.1 / TOP_K] * (TOP_K - 1)]).astype(np.float32), (len(ids), 1))
        made.append(Completion(
            "x", text, tuple(ids), top_logprobs[:, 0].copy(), top_ids, top_logprobs, finished=True, prompt_tokens=800
        ))  # fmt: skip
    return made


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def xgrammar_costs(
    tokenizer: PreTrainedTokenizerBase, structure: Mapping[str, Any], ids: Sequence[int]
) -> dict[str, Any]:
    """Compiling in xgrammar, and the masks of an answer; empty where it is not installed."""
    try:
        import xgrammar
    except ImportError:
        return {}
    text, size = json.dumps(structure), len(tokenizer)
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size))
    compiling, compiled = seconds(lambda: compiler.compile_structural_tag(text))
    again, _ = seconds(lambda: xgrammar.Grammar.from_structural_tag(text))  # vLLM checks every request so
    matcher, mask = (
        xgrammar.GrammarMatcher(compiled, override_stop_tokens=[2]),
        xgrammar.allocate_token_bitmask(1, size),
    )
    masks = []
    for token in ids:
        masks.append(seconds(lambda: matcher.fill_next_token_bitmask(mask, 0))[0])
        assert matcher.accept_token(token)
    return {
        "tag, MB": len(text) / 1e6,
        "compiled in, s": compiling,
        "compiled, MB": compiled.memory_size_bytes / 1e6,
        "check of a request, ms": again * 1000,
        "longest mask, ms": max(masks) * 1000,
    }


def measure(labels: int, answers: int) -> dict[str, Any]:
    """Everything about a taxonomy of so many labels."""
    tokenizer = load_processor(TINY_MODEL_PATH).tokenizer
    AnswerTokens(tokenizer, five_fields(paths(10)), END)  # what the first call alone takes
    prompt = five_fields(paths(labels))
    tracemalloc.start()
    kept = AnswerTokens(tokenizer, prompt, END)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    reading, tokens = seconds(lambda: AnswerTokens(tokenizer, prompt, END))
    made = completions(tokenizer, tokens, answers)
    each = []
    for one in made:
        taken, found = seconds(lambda one=one: postprocess(one, tokens, CALIBRATION, ReviewSettings()))
        assert found.answer is not None
        assert found.alternatives
        each.append(taken)
    writing, structure = seconds(lambda: answer_structure(tokens))
    allowed, ids = answer_grammar(tokens), made[0].token_ids
    step = median(seconds(lambda end=end: allowed(ids[:end]))[0] for end in range(len(ids)))
    return {
        "labels": labels,
        "an answer, ms": median(each) * 1000,
        "AnswerTokens, s": reading,
        "AnswerTokens, MB": held / 1e6,
        "structural tag, s": writing,
        **xgrammar_costs(tokenizer, structure, ids),
        "transformers' step, ms": step * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 10_000])
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, measured first")
    parser.add_argument("--json", action="store_true", help="only print the rows")
    settings = parser.parse_args()
    before = []
    if settings.before:
        labels = map(str, settings.labels)
        told = subprocess.run(
            [sys.executable, __file__, "--json", "--answers", str(settings.answers), "--labels", *labels],
            env=os.environ | {"PYTHONPATH": str(settings.before.absolute())},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        before = json.loads(told.splitlines()[-1])
    rows = [measure(labels, settings.answers) for labels in settings.labels]
    if settings.json:
        print(json.dumps(rows))
        return
    ratios = [
        {"labels": old["labels"], **{name: old[name] / row[name] for name in row if name != "labels" and row[name]}}
        for old, row in zip(before, rows, strict=False)
    ]
    tables = {"": rows, "Before": before, "Before, as a multiple": ratios}
    record("many_labels", {title: _turned(table) for title, table in tables.items() if table})


def _turned(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A column for each number of labels."""
    return [
        {"": name, **{f"{row['labels']:,} labels": row[name] for row in rows}} for name in rows[0] if name != "labels"
    ]


if __name__ == "__main__":
    main()
