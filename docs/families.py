"""The tables of docs/models.md that `docs.reference` writes: what each family's models need, and what a photo takes."""

from docs.markdown import table
from enrich.capacity import GIB, Machine, needs
from enrich.models.base import crop_tokens
from enrich.models.registry import families

_GPU = Machine("a GPU", 0, 2)  # weights in bfloat16; its memory size does not matter here
_PHOTO = (1000, 1333)  # pixels
_BUDGETS = (250, 500, crop_tokens(4), 1500)
# Pixels of a square's side and its tokens in the published models of the generic families (see `auto.Facts`).
_SQUARES = {
    "gemma4": {"": (48, 1)},
    "qwen3_vl": {"": (32, 1)},
    "smolvlm": {" 256M, 500M": (512, 64), " 2.2B": (384, 81)},
}


def model_tables() -> dict[str, str]:
    """By the names of their markers."""
    return {"models": _models(), "photos": _photos()}


def _models() -> str:
    rows = [
        [
            f"`{need.model.name}`", need.family.title, need.family.licence, f"{need.model.parameters:.2g} B",
            *(f"{size / GIB:.0f} GiB" for size in (need.train, need.train_least, need.serve)),
            f"{need.model.kv_bytes / 1000:.0f} kB",
        ]
        for need in needs(_GPU)
    ]  # fmt: skip
    head = (
        "`model:`",
        "family",
        "licence",
        "parameters",
        "to train",
        "at least",
        "to serve",
        "KV cache per token",
    )
    return table(head, rows)


def _photos() -> str:
    head = ("family", *(f"`photo_tokens: {budget}`" for budget in _BUDGETS), "also needed for vLLM")
    rows = []
    for family in families():
        how = family.load()
        needed = ", ".join(how.vllm_imports) or "-"
        for size, square in _SQUARES.get(family.model_types[0], {"": None}).items():
            rows.append([family.title + size, *(str(_tokens(how, square, budget)) for budget in _BUDGETS), needed])
    return table(head, rows)


def _tokens(how: object, square: tuple[int, int] | None, budget: int) -> int:
    """The tokens that a photo really takes."""
    if square is None:
        return min(map(crop_tokens, range(1, 17)), key=lambda tokens: abs(tokens - budget))
    facts, (side, each) = how.facts, square  # type: ignore[attr-defined]
    across, down = facts.resized(*_PHOTO, facts.squares_for(budget, each), side)
    return facts.spelling(down // side, across // side, each).count(facts.image_token)
