import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, AutoTokenizer

from enrich.models.phi3_vision import FAMILY, Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.models.phi3_vision.image_processing import normalize_crops
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.models.registry import family_of
from tests.testing.published_phi3v import ORIGINAL_PREPROCESSOR, PREPROCESSOR_3_5, PROCESSOR_3_5
from tests.testing.tiny_phi3v import (
    Tiny,
    byte_level_tokenizer,
    pattern_image,
    tiny_phi3v,
    wrap_tokenizer,
)

PROMPT = "<|user|>\n<|image_1|>\nWhat is shown in this image?<|end|>\n<|assistant|>\n"

# The pieces that the golden prompts use, under the original tokenizer's ids.
ORIGINAL_IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<0x0A>": 13,
    "▁": 29871,
    "What": 5618,
    "▁What": 1724,
    "▁is": 338,
    "▁shown": 4318,
    "▁in": 297,
    "▁this": 445,
    "▁image": 1967,
    "?": 29973,
    "<|endoftext|>": 32000,
    "<|assistant|>": 32001,
    "<|system|>": 32006,
    "<|end|>": 32007,
    "<|user|>": 32010,
}


def golden_processor(num_crops: int) -> Phi3VProcessor:
    """The original's ids for the words of the golden prompts; each word is merged letter by letter."""
    vocab, merges = dict(ORIGINAL_IDS), []
    spare = iter(range(100, 300))
    for word in ("▁What", "What", "▁is", "▁shown", "▁in", "▁this", "▁image"):
        for end in range(1, len(word)):
            for piece in (word[:end], word[end], word[: end + 1]):
                if piece not in vocab:
                    vocab[piece] = next(spare)
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), wrap_tokenizer(Tokenizer(model)))


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_phi3v(tmp_path)


@pytest.mark.parametrize(("num_crops", "tokens"), [(1, 313), (4, 757)])
def test_golden_ids_of_the_original_processor(num_crops: int, tokens: int) -> None:
    processor = golden_processor(num_crops)
    inputs = processor(PROMPT, pattern_image(300, 400))
    text = [1, 29871, 13, 5618, 338, 4318, 297, 445, 1967, 29973, 32007, 29871, 13, 32001]
    assert inputs["input_ids"].tolist() == [[1, 32010, 29871, 13] + [-1] * tokens + text]
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["attention_mask"].tolist() == [[1] * (4 + tokens + 14)]
    assert inputs["pixel_values"].shape == (1, num_crops + 1, 3, 336, 336)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}


def test_golden_ids_without_new_lines() -> None:
    prompt = "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\n"
    ids = golden_processor(1)(prompt, pattern_image(300, 400))["input_ids"][0].tolist()
    assert ids[:4] == [1, 32010, 29871, 13]
    assert ids[4:-10] == [-1] * 313
    assert ids[-10:] == [1, 1724, 338, 4318, 297, 445, 1967, 29973, 32007, 32001]


def test_text_without_images_is_plain_tokens(tiny: Tiny) -> None:
    inputs = tiny.processor("<|user|>\nhi<|end|>")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].tolist() == [tiny.processor.tokenizer("<|user|>\nhi<|end|>").input_ids]
    # vLLM asks for the ids of a whole prompt this way, to find the tags in them.
    tags = tiny.processor("hi <|image_1|>")["input_ids"][0]
    assert tiny.processor.decode(tags, skip_special_tokens=True) == "hi <|image_1|>"


def test_each_image_keeps_its_number_and_each_text_its_start(tiny: Tiny) -> None:
    processor = tiny.processor
    ids = processor.token_ids("a<|image_1|><|image_2|>b", [2, 3])
    start_a, empty, start_b = (processor.tokenizer(text).input_ids for text in ("a", "", "b"))
    assert ids == [*start_a, -1, -1, *empty, -2, -2, -2, *start_b]
    assert (start_a[0], empty, start_b[0]) == (1, [1], 1)
    images = [pattern_image(28, 28), pattern_image(200, 20)]
    inputs = processor("a<|image_1|>b<|image_2|>c", images)
    counts = [processor.image_processor.num_image_tokens(*image.size) for image in images]
    assert [(inputs["input_ids"] == -number).sum().item() for number in (1, 2)] == counts
    assert inputs["pixel_values"].shape == (2, 5, 3, 28, 28)


def test_batches_are_padded_on_the_left(tiny: Tiny) -> None:
    image = pattern_image(50, 50)
    texts = ["<|image_1|>short", "<|image_1|>rather longer"]
    inputs = tiny.processor(texts, [image, image])
    alone = [tiny.processor(text, image)["input_ids"][0].tolist() for text in texts]
    gap = len(alone[1]) - len(alone[0])
    assert gap > 0
    assert inputs["input_ids"].tolist() == [[tiny.processor.tokenizer.pad_token_id] * gap + alone[0], alone[1]]
    assert inputs["attention_mask"].tolist() == [[0] * gap + [1] * len(alone[0]), [1] * len(alone[1])]
    right = tiny.processor(texts, [[image], [image]], padding_side="right")
    assert right["attention_mask"].tolist() == [[1] * len(alone[0]) + [0] * gap, [1] * len(alone[1])]
    assert torch.equal(right["pixel_values"], inputs["pixel_values"])
    unpadded = tiny.processor(texts, [image, image], padding=False, return_tensors=None)
    assert unpadded["input_ids"] == alone


def test_flat_images_are_dealt_out_by_the_tags(tiny: Tiny) -> None:
    texts = ["<|image_1|>", "no image", "<|image_1|><|image_2|>"]
    first, second, third = (pattern_image(size, 28) for size in (28, 56, 112))
    flat, nested = (
        tiny.processor(texts, images) for images in ([first, second, third], [[first], [], [second, third]])
    )
    assert torch.equal(flat["input_ids"], nested["input_ids"])
    assert torch.equal(flat["image_sizes"], nested["image_sizes"])
    assert flat["image_sizes"].tolist() == [[56, 56], [28, 56], [28, 112]]


def test_prepared_images(tiny: Tiny) -> None:
    photo = pattern_image(90, 40)
    whole = tiny.processor("<|image_1|>", photo)
    split = tiny.processor("<|image_1|>", hd_transform(photo, 4, 28), do_hd_transform=False)
    assert torch.equal(whole["input_ids"], split["input_ids"])
    assert torch.equal(whole["pixel_values"], split["pixel_values"])


def test_pixels_left_for_later_normalising(tiny: Tiny) -> None:
    texts, photos = ["<|image_1|>", "<|image_1|>"], [pattern_image(90, 40), pattern_image(31, 77)]
    whole, bytes_only = tiny.processor(texts, photos), tiny.processor(texts, photos, do_normalize=False)
    assert torch.equal(whole["input_ids"], bytes_only["input_ids"])
    assert bytes_only["pixel_values"].dtype == torch.uint8
    later = normalize_crops(bytes_only["pixel_values"], bytes_only["image_sizes"])
    assert torch.equal(whole["pixel_values"], later)


IMAGE = pattern_image(28, 28)
ONE = "image tags needed for 1 images: <|image_1|> to <|image_1|> in order, once each; found: "
TWO = "image tags needed for 2 images: <|image_1|> to <|image_2|> in order, once each; found: "


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("no tag", IMAGE, "0 image tags in the text, but 1 images"),
        ("<|image_1|>", [], "1 image tags in the text, but 0 images"),
        ("<|image_1|><|image_2|>", [IMAGE], "2 image tags in the text, but 1 images"),
        (["<|image_1|>"], [[IMAGE], [IMAGE]], "2 lists of images for 1 prompts"),
        ("<|image_2|>", IMAGE, ONE + "<|image_2|>"),
        ("<|image_2|><|image_1|>", [IMAGE] * 2, TWO + "<|image_2|>, <|image_1|>"),
        ("<|image_1|><|image_1|>", [IMAGE] * 2, TWO + "<|image_1|>, <|image_1|>"),
        (["<|image_1|>"], [[]], "image tags needed for 0 images: none; found: <|image_1|>"),
    ],
)
def test_tags_and_images_must_match(tiny: Tiny, text: str, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"image") as caught:
        tiny.processor(text, images)
    assert str(caught.value) == message


def test_nothing_is_ever_cut(tiny: Tiny) -> None:
    text, image = "<|image_1|>abc", pattern_image(28, 28)
    length = tiny.processor(text, image)["input_ids"].shape[1]
    assert tiny.processor(text, image, max_length=length)["input_ids"].shape[1] == length
    with pytest.raises(ValueError, match=f"^prompt 0 has {length} tokens, more than max_length={length - 1}$"):
        tiny.processor(text, image, max_length=length - 1)
    with pytest.raises(ValueError, match=r"^truncation would cut image tokens"):
        tiny.processor(text, image, truncation=True)
    with pytest.raises(ValueError, match=r"^padding_side must be left or right, got 'top'$"):
        tiny.processor(text, image, padding_side="top")


def test_decoding_gives_the_text_back(tiny: Tiny) -> None:
    text = "Product: Gürtel, 2 colours\nFull Price: 290"
    ids = tiny.processor.tokenizer(text).input_ids
    assert tiny.processor.decode(ids, skip_special_tokens=True) == text
    assert tiny.processor.batch_decode([ids, ids], skip_special_tokens=True) == [text, text]


def test_chat_template_is_the_model_card_format(tiny: Tiny) -> None:
    turn = {"role": "user", "content": "<|image_1|>\nWhat is shown in this image?"}
    assert tiny.processor.apply_chat_template([turn], add_generation_prompt=True) == PROMPT
    answer = {"role": "assistant", "content": "A bag."}
    full = PROMPT + "A bag.<|end|>\n"
    assert tiny.processor.apply_chat_template([turn, answer], add_generation_prompt=True) == full


def test_save_and_load(tiny: Tiny, tmp_path: Path) -> None:
    image = pattern_image(300, 400)
    expected = tiny.processor(PROMPT, image)
    for loaded in (load_processor(tiny.path), AutoProcessor.from_pretrained(tiny.path)):
        assert type(loaded) is Phi3VProcessor
        inputs = loaded(PROMPT, image)
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert loaded.chat_template == tiny.processor.chat_template
    one_crop = load_processor(tiny.path, num_crops=1)
    assert one_crop.image_processor.num_crops == 1
    one_crop.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "num_crops" not in written
    # Where the original's code looks for it.
    assert json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())["num_crops"] == 1
    assert load_processor(tmp_path / "saved").image_processor.num_crops == 1


@pytest.mark.parametrize("with_config", [True, False])
def test_the_original_files_load(tmp_path: Path, with_config: bool) -> None:
    # As published: a LlamaTokenizer named, the chat template in tokenizer_config.json, remote code offered.
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages[0]['content'] }}", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ORIGINAL_PREPROCESSOR))
    if with_config:
        Phi3VConfig(vocab_size=300).save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path)("<|user|>\nHi").input_ids == tokenizer("<|user|>\nHi").input_ids
        assert type(AutoProcessor.from_pretrained(tmp_path)) is Phi3VProcessor
    processor = load_processor(tmp_path, num_crops=4)
    assert processor.image_processor.num_crops == 4
    assert processor("<|user|>\nHi")["input_ids"].tolist() == [tokenizer("<|user|>\nHi").input_ids]
    assert processor.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"


def test_the_files_of_3_5_load_and_look_less_closely(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path)
    Phi3VConfig(vocab_size=300).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR_3_5))
    (tmp_path / "processor_config.json").write_text(json.dumps(PROCESSOR_3_5))
    assert family_of(tmp_path) is FAMILY
    assert load_processor(tmp_path).preparation.num_crops == 4
    assert load_processor(tmp_path, photo_tokens=1500).preparation.num_crops == 9
