"""The words of question and answer in each language: labels, the word for unknown, and the question."""

from collections.abc import Sequence
from dataclasses import dataclass

from enrich.vocabulary import Language


@dataclass(frozen=True)
class Wording:
    """One language. {things} in `question` is the list of fields, whose last two `and_` joins; labels of further fields
    are in lower case there, unless `capitals`."""

    title: str
    category: str
    price: str
    unknown: str
    question: str
    asked: tuple[str, str, str]  # title, category and price inside the question
    cents: str  # hundredths of a currency, as it stands behind the currency's code
    in_currency: str = "{price} in {currency}"
    comma: str = ", "
    and_: str = " and "
    capitals: bool = False

    def instruction(self, others: Sequence[str], currency: str | None, *, cents: bool = False) -> str:
        """The question for title, category, `others` (labels of further fields) and price, in units of `currency` or
        in hundredths of it."""
        title, category, price = self.asked
        unit = " ".join(filter(None, (currency, self.cents if cents else None)))
        price = self.in_currency.format(price=price, currency=unit) if unit else price
        *things, last = [title, category, *(one if self.capitals else one.lower() for one in others), price]
        return self.question.format(things=self.comma.join(things) + self.and_ + last)


WORDINGS: dict[Language, Wording] = {
    "en": Wording(
        "Product", "Category", "Full Price", "unknown", "What product is this? Give its {things}.",
        ("title", "category", "full price"), "cents",
    ),
    "ja": Wording(
        "製品", "カテゴリ", "定価", "不明", "この商品は何ですか。{things}を答えてください。",
        ("製品名", "カテゴリ", "定価"), "セント", "{price}（{currency}）", "、", "、",
    ),
    "de": Wording(
        "Produkt", "Kategorie", "Originalpreis", "unbekannt", "Was für ein Produkt ist das? Nenne {things}.",
        ("Titel", "Kategorie", "Originalpreis"), "Cent", and_=" und ", capitals=True,
    ),
    "fr": Wording(
        "Produit", "Catégorie", "Prix d'origine", "inconnu", "Quel est ce produit ? Indique : {things}.",
        ("titre", "catégorie", "prix d'origine"), "centimes", "{price} en {currency}", and_=" et ",
    ),
    "es": Wording(
        "Producto", "Categoría", "Precio original", "desconocido", "¿Qué producto es este? Indica: {things}.",
        ("título", "categoría", "precio original"), "céntimos", "{price} en {currency}", and_=" y ",
    ),
    "zh": Wording(
        "商品", "类别", "原价", "未知", "这是什么商品？请给出{things}。",
        ("名称", "类别", "原价"), "分", "{price}（{currency}）", "、", "和",
    ),
}  # fmt: skip
