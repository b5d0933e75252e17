"""What the tiny base can say and is asked: tokenizer, configuration, and the retailers it learns from."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from enrich.answers.prompt import END, Prompt, make_prompt, render_answer, render_prompt
from enrich.models.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
from sample.dialects import BASE
from sample.pricing import noiseless_price, on_ladder
from sample.products import sample_product
from sample.spec import COLOURS, HIDDEN, KINDS, Dialect, Prices
from sample.titles import title

NUM_CROPS = 4  # what the processor is saved with, and most photos are learned at
IMAGE_SIZE = 112
VOCABULARY = 2048
SPECIALS = [  # the original's 45 added tokens, in its order
    "<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in range(1, 5)), "<|system|>", "<|end|>",
    *(f"<|placeholder{i}|>" for i in (5, 6)), "<|user|>", *(f"<|placeholder{i}|>" for i in range(7, 40)), "<|image|>",
]  # fmt: skip
RSTRIP = {"<|assistant|>"}  # the newline after it vanishes, as in the original

Asked = tuple[str, str]  # instruction, answer


# --- tokenizer, processor, configuration


def make_processor() -> Phi3VProcessor:
    """A small tokenizer built like Llama's (word-start marker, byte fallback, single digits) with Phi-3's specials."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # While learning, words, digits and newlines are apart, so that no merge crosses them; afterwards nothing splits.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[\n\d:.,]"), "isolated"),
        ]
    )
    size = VOCABULARY - 3 - 256 - len(SPECIALS)
    alphabet = [chr(c) for c in range(33, 127)] + ["▁"]
    learner.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        if token != "\n":  # a newline is its byte, as in Llama's
            vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, [tuple(m) for m in learned["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=t in RSTRIP) for t in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    images = Phi3VImageProcessor(num_crops=NUM_CROPS, image_size=IMAGE_SIZE, patch_size=14)
    return Phi3VProcessor(images, fast)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Phi3VConfig:
    """Every part of Phi-3-vision, small: CLIP tower 6 x 192, language model 5 x 256."""
    half = 32  # half the head dimension
    return Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={
            "type": "su",
            "short_factor": [round(1.0 + i / half, 3) for i in range(half)],
            "long_factor": [round(1.0 + 63 * (i / (half - 1)) ** 2, 3) for i in range(half)],
        },
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        img_processor={
            "image_dim_out": 192,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
        },
    )


def texts() -> list[str]:
    """What the tokenizer learns from: the BASE retailer's answers and words that many retailers use."""
    prompt = base_prompt()
    answers = [
        render_answer(prompt, product.title, product.category, product.price)
        for product in (sample_product(99, i, BASE) for i in range(4000))
    ]
    words = [RETAIL.upper()] * 40 + [RETAIL.title()] * 40 + [RETAIL] * 10 + [OTHER, OTHER.upper(), OTHER.title()] * 5
    return answers + [render_prompt(prompt)] * 50 + words


def base_prompt() -> Prompt:
    return make_prompt(tuple(levels[2] for levels in BASE.categories.values()), BASE.currency)


# Words of fashion, and a few of other trades, which are less often worth a token of their own.
RETAIL = """
women men kids girl boy baby unisex clothing outerwear jackets coats trench parka blazer shirt shirts blouse tee
t-shirt polo top tops sweater cardigan hoodie knitwear dress dresses skirt skirts trousers pants jeans shorts leggings
suit swimwear underwear socks tights shoes sneakers boots sandals loafers heels flats bags tote shoulder crossbody
backpack clutch wallet card case belt belts scarf scarves hat cap beanie gloves sunglasses jewellery watch accessories
cotton wool cashmere silk linen denim leather suede nylon velvet canvas quilted knit check striped dotted floral plain
printed long short sleeve collar button zip hooded slim relaxed cropped oversized mini midi maxi black white grey navy
blue red green yellow pink purple brown beige camel olive burgundy gold silver light dark small medium large classic
stripes stripe dots dot checks flowers flower cable quilting braid pinstripe straw sleeveless short-sleeve long-sleeve
v-neck turtleneck double-breasted belted fringed ruffled bow pleated pencil kitten stiletto block ankle-strap ankle
knee chain platform tipped high-top square-buckle round-buckle flap wide-leg blouses cardigans pumps pump backpacks
polos blazers ties tie dungarees hoodies rain mittens beanies caps hats star heart dinosaur bear bobble tailoring
woman man product category full price in sweaters t-shirts tees shirt-dress pullovers wallets sun trainers tonal motif
spots plaid bands
"""
OTHER = """
orange cream fruit apple banana lemon pear grape melon vegetable tomato potato onion carrot cabbage milk juice yoghurt
packages fresh organic unknown title give this what with for and the of home garden kitchen toys books sports
electronics phone chair table lamp beauty fragrance gift set pack bottle box piece new
"""

WORD_LIST = sorted({*RETAIL.split(), *OTHER.split()})


# --- retailers


@lru_cache(maxsize=256)
def make_retailer(number: int) -> Dialect:
    """A made-up retailer over the same drawings: its words, the order of its titles and its prices are random.

    One vocabulary would be learned as a whole; many teach to see an attribute and to find the asker's word for it.
    """
    rng = np.random.default_rng((31, number))
    words = [str(word) for word in rng.permutation(WORD_LIST)]
    names: dict[str, str] = {f"colour={colour}": words.pop().title() for colour in COLOURS}
    hidden = {name: values for shown in HIDDEN.values() for name, values in shown.items()}
    for kind, spec in KINDS.items():
        for attribute, values in {**spec.attributes, **spec.finish, **hidden}.items():
            for value in values:
                own = f"{attribute}={value}"
                if own not in names and rng.random() < 0.8:
                    names[own] = words.pop().title()
        names[kind] = " ".join(words.pop().title() for _ in range(rng.integers(1, 3)))
    slots = sorted({name for spec in KINDS.values() for name in {**spec.attributes, **spec.finish, **hidden}})
    order = [str(slot) for slot in rng.permutation([*slots, "kind"])]
    order[int(rng.integers(len(order) // 2, len(order))) :] += [":in"] * int(rng.random() < 0.5) + ["colour"]
    upper = rng.random() < 0.5
    pool = [str(word) for word in rng.permutation(WORD_LIST)]
    leaves = [" ".join(pool.pop() for _ in range(rng.integers(1, 3))) for _ in KINDS]
    level = float(rng.uniform(-0.5, 2.5))
    effects = {name: float(rng.normal(0.0, 0.3)) for name in names if "=" in name and not name.startswith("colour")}
    return replace(
        BASE,
        name=f"{words.pop()}{words.pop()}".title().replace("-", ""),
        categories={
            kind: ("All", leaf.title(), leaf.upper() if upper else leaf.title())
            for kind, leaf in zip(KINDS, leaves, strict=True)
        },
        words=names,
        title=tuple(order),
        prices=Prices(
            base={kind: base * math.exp(level + float(rng.normal(0, 0.6))) for kind, base in BASE.prices.base.items()},
            effects=effects,
            ladder=((20, 1), (100, 5), (500, 10), (2000, 50), (1e9, 100)),
            sigma=BASE.prices.sigma,
        ),
    )


def tell(kind: str, attributes: Mapping[str, str], dialect: Dialect, rng: np.random.Generator) -> str:
    """The answer of a retailer, its price under a noise of its own."""
    median = noiseless_price(kind, attributes, dialect.prices)
    price = on_ladder(median * float(np.exp(rng.normal(0.0, dialect.prices.sigma))), dialect.prices.ladder)
    leaf = dialect.category(kind, attributes)[2]
    return render_answer(base_prompt(), title(kind, attributes, dialect), leaf, price)


def asked(variant: str, kind: str, attributes: Mapping[str, str], retailers: int, rng: np.random.Generator) -> Asked:
    """Instruction and answer of one variant.

    "base again" has another noise on its price, and now and then another currency: prompts must not become magic words.
    "copy" asks to copy a made-up answer: every token of the vocabulary gets written, and prices of every magnitude, so
    that a LoRA on other words and prices finds embeddings that were trained.
    """
    instruction = base_prompt().instruction
    if variant == "copy":
        answer = made_up_answer(rng)
        return f"Copy this: {answer}", answer
    if variant == "retailer" and retailers:
        dialect = make_retailer(int(rng.integers(retailers)))
        return f"{instruction[:-1]} at {dialect.name}.", tell(kind, attributes, dialect, rng)
    if variant == "base again" and rng.random() < 0.3:
        instruction = make_prompt(base_prompt().categories, (None, "USD", "GBP", "JPY")[rng.integers(4)]).instruction
    return instruction, tell(kind, attributes, BASE, rng)


def made_up_answer(rng: np.random.Generator) -> str:
    """Three lines of random words, letters and prices, in the usual form."""

    def words(most: int) -> str:
        chosen = [str(rng.choice(WORD_LIST)) for _ in range(rng.integers(1, most + 1))]
        if rng.random() < 0.3:
            chosen.append("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8))))
        return " ".join(chosen)

    case = (str.title, str.upper, str.lower)
    name, category = case[rng.choice(3, p=(0.8, 0.1, 0.1))](words(4)), case[rng.choice(3, p=(0.4, 0.5, 0.1))](words(2))
    price = None if rng.random() < 0.1 else float(np.exp(rng.uniform(0, np.log(30_000))))
    return render_answer(base_prompt(), name, category, price)
