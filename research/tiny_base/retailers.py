"""The made-up retailers that the tiny base learns from, and what is asked about a product."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from enrich.answers.fields import Field
from enrich.answers.prompt import Prompt, make_prompt, render_answer
from enrich.answers.wording import WORDINGS
from enrich.vocabulary import Language
from research.tiny_base.words import words
from sample.dialects import BASE, DEMO
from sample.fields import field_values
from sample.japanese import JAPANESE
from sample.pricing import noiseless_price, on_ladder
from sample.products import SampleProduct
from sample.spec import COLOURS, HIDDEN, KINDS, Dialect, Prices
from sample.titles import title

LANGUAGES: Mapping[Language, Dialect] = {"en": BASE, "ja": JAPANESE}  # whose country, currency and price steps
TAKEN = {"product", "category", *(word for wording in WORDINGS.values() for word in vars(wording).values())}  # labels
WORDS = {language: [word for word in words(language) if word not in TAKEN] for language in LANGUAGES}
MOST_FIELDS = 5  # asked for at a time in addition to title, category and price
TERSE = 4  # every fourth retailer answers without labels

Asked = tuple[str, str]  # instruction, answer
_FURTHER = {name: values for shown in HIDDEN.values() for name, values in shown.items()}


def base_prompt() -> Prompt:
    return make_prompt(tuple(levels[2] for levels in BASE.categories.values()), BASE.currency)


# What the base's own retailer calls the further columns of DEMO; its values are the words of its titles.
BASE_FIELDS: Mapping[str, Mapping[str, str]] = {
    label: {key: BASE.words[key] for key in DEMO.fields[column] if key in BASE.words and "=" in key}
    for column, label in {
        "colour": "Shade", "fabric": "Make", "sleeve": "Arms", "closure": "Front", "heel": "Lift", "back": "Rear",
        "label": "Line",
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class Retailer:
    """A dialect whose `fields` are under the words that the retailer has for them."""

    dialect: Dialect
    language: Language
    terse: bool = False


@lru_cache(maxsize=1024)
def make_retailer(number: int, language: Language) -> Retailer:
    """A made-up retailer over the same drawings: its words, the order of its titles and its prices are random.

    One vocabulary would be learned as a whole; many teach to see an attribute and to find the asker's word for it.
    """
    rng = np.random.default_rng((31, number, language == "ja"))
    own, pool = ([str(word).title() for word in rng.permutation(WORDS[language])] for _ in range(2))
    of, joint = LANGUAGES[language], "" if language == "ja" else " "
    names: dict[str, str] = {f"colour={colour}": own.pop() for colour in COLOURS}
    for kind, spec in KINDS.items():
        for attribute, values in {**spec.attributes, **spec.finish, **_FURTHER}.items():
            for value in values:
                name = f"{attribute}={value}"
                if name not in names and rng.random() < 0.8:
                    names[name] = own.pop()
        names[kind] = joint.join(own.pop() for _ in range(rng.integers(1, 3)))
    slots = sorted({name for spec in KINDS.values() for name in {**spec.attributes, **spec.finish, **_FURTHER}})
    order = [str(slot) for slot in rng.permutation([*slots, "kind"])]
    parting = [{"en": ":in", "ja": ": "}[language]] * int(rng.random() < 0.5)
    order[int(rng.integers(len(order) // 2, len(order))) :] += [*parting, "colour"]
    upper = rng.random() < 0.5
    leaves = [joint.join(pool.pop() for _ in range(rng.integers(1, 3))) for _ in KINDS]
    leaves = [leaf.upper() if upper else leaf for leaf in leaves]
    level = float(rng.uniform(-0.5, 2.5)) + math.log(BASE.to_eur / of.to_eur)
    effects = {name: float(rng.normal(0.0, 0.3)) for name in names if "=" in name and not name.startswith("colour")}
    dialect = replace(
        of,
        name=f"{own.pop()}{own.pop()}".replace("-", ""),
        categories={kind: ("All", leaf, leaf) for kind, leaf in zip(KINDS, leaves, strict=True)},
        words=names,
        title=tuple(order),
        joint=joint,
        prices=Prices(
            base={kind: base * math.exp(level + float(rng.normal(0, 0.6))) for kind, base in BASE.prices.base.items()},
            effects=effects,
            ladder=LADDERS[language],
            sigma=BASE.prices.sigma,
        ),
        fields={pool.pop(): made_up(values, names, pool, rng) for values in DEMO.fields.values()},
    )
    return Retailer(dialect, language, terse=number % TERSE == 0)


LADDERS: Mapping[Language, tuple[tuple[float, int], ...]] = {
    "en": ((20, 1), (100, 5), (500, 10), (2000, 50), (1e9, 100)),
    "ja": JAPANESE.prices.ladder,
}


def made_up(
    values: Mapping[str, str], names: Mapping[str, str], pool: list[str], rng: np.random.Generator
) -> Mapping[str, str]:
    """Words for the values of one of DEMO's fields: half of them those of titles, where titles name one."""
    chosen: dict[str, str] = {}
    for key, value in values.items():
        if value not in chosen:
            chosen[value] = names[key] if key in names and "=" in key and rng.random() < 0.5 else pool.pop()
    return {key: chosen[value] for key, value in values.items()}


BASE_RETAILER = Retailer(replace(BASE, fields=BASE_FIELDS), "en")


def tell(retailer: Retailer, product: SampleProduct, columns: Sequence[str], rng: np.random.Generator) -> Asked:
    """A retailer's question for title, category, `columns` and price, and its answer, whose price differs each time."""
    dialect, kind, attributes = retailer.dialect, product.kind, product.attributes
    others = [
        Field(name=f"field_{number}", kind="choice", label=column, column=column)
        for number, column in enumerate(columns)
    ]
    leaf = dialect.category(kind, attributes)[2]
    prompt = make_prompt((leaf,), dialect.currency, language=retailer.language, others=others, terse=retailer.terse)
    told = field_values(kind, attributes, dialect, len(product.views))
    median = noiseless_price(kind, attributes, dialect.prices)
    price = on_ladder(median * float(np.exp(rng.normal(0.0, dialect.prices.sigma))), dialect.prices.ladder)
    answer = render_answer(
        prompt, title(kind, attributes, dialect), leaf, price, {field.name: told[field.column] for field in others}
    )
    return prompt.instruction, answer


def asked(variant: str, product: SampleProduct, retailers: int, rng: np.random.Generator) -> Asked:
    """Instruction and answer of one variant.

    "base again" has another noise on its price, now and then further fields, and now and then another currency: prompts
    must not become magic words. "en" and "ja" are made-up retailers, whose questions name them. "copy" asks to copy a
    made-up answer: every token of the vocabulary gets written, and prices of every magnitude, so that a LoRA on other
    words and prices finds embeddings that were trained.
    """
    if variant == "copy":
        answer = made_up_answer("ja" if rng.random() < 0.4 else "en", rng)
        return f"Copy this: {answer}", answer
    if variant in LANGUAGES and retailers:
        retailer = make_retailer(int(rng.integers(retailers)), variant)
        instruction, answer = tell(retailer, product, some_columns(retailer, rng), rng)
        name = retailer.dialect.name
        return f"{instruction[:-1]} at {name}." if variant == "en" else f"{name}の{instruction}", answer
    columns = some_columns(BASE_RETAILER, rng) if variant != "base" and rng.random() < 0.4 else []
    instruction, answer = tell(BASE_RETAILER, product, columns, rng)
    if variant == "base again" and not columns and rng.random() < 0.3:
        instruction = make_prompt(base_prompt().categories, (None, "USD", "GBP", "JPY")[rng.integers(4)]).instruction
    return instruction, answer


def some_columns(retailer: Retailer, rng: np.random.Generator) -> list[str]:
    """None to MOST_FIELDS of the retailer's further columns, in any order."""
    order = rng.permutation(list(retailer.dialect.fields))
    return [str(column) for column in order[: rng.integers(MOST_FIELDS + 1)]]


def made_up_answer(language: Language, rng: np.random.Generator) -> str:
    """Lines of random words, letters and prices, in the usual form."""
    known, joint = WORDS[language], "" if language == "ja" else " "

    def some(most: int) -> str:
        chosen = [str(rng.choice(known)) for _ in range(rng.integers(1, most + 1))]
        if rng.random() < 0.3:
            chosen.append("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8))))
        return joint.join(chosen)

    case = (str.title, str.upper, str.lower)
    name, category = case[rng.choice(3, p=(0.8, 0.1, 0.1))](some(4)), case[rng.choice(3, p=(0.4, 0.5, 0.1))](some(2))
    price = None if rng.random() < 0.1 else float(np.exp(rng.uniform(0, np.log(30_000))))
    return render_answer(make_prompt((category,), "EUR", language=language), name, category, price)
