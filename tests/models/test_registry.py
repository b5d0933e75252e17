"""Which family a model belongs to, and that the library knows families by their protocol alone."""

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from enrich.engines.transformers_engine import find_base
from enrich.errors import UsageError
from enrich.models.checkpoint import load_processor
from enrich.models.hub import resolve
from enrich.models.registry import CheckpointError, families, family_of, layouts, vision_model
from enrich.settings.models import TINY_MODEL_PATH

ROOT = Path(__file__).parents[2]
# Titles, model types and classes of families, those to come included; what only some of them have; control tokens.
NAMES = re.compile(
    r"phi[-_ ]?3|phi3v|qwen|gemma|smol[-_ ]?vlm|idefics|llava|internvl|m-?rope|long-?rope|deepstack|<\|\w+",
    re.IGNORECASE,
)
NAMED = {"enrich/settings/models.py", "enrich/answers/plain_text.py"}  # the defaults; how control tokens look
REMOTE = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "vision_config": {}}


def test_nothing_outside_names_a_family() -> None:
    found = []
    for file in sorted(
        file for folder in ("enrich", "flows", "deployments", "sample") for file in (ROOT / folder).rglob("*.*")
    ):
        name = file.relative_to(ROOT).as_posix()
        if name.startswith(("enrich/models/", "enrich/assets/")) or name in NAMED or "__pycache__" in name:
            continue
        found += [f"{name}: {line.strip()}" for line in file.read_text("utf-8").splitlines() if NAMES.search(line)]
    assert not found


def test_families_with_a_class_of_their_own_for_vllm_are_plugins_of_vllm() -> None:
    """vLLM has classes of all others."""
    plugins = {point.name for point in entry_points(group="vllm.general_plugins") if point.value.startswith("enrich.")}
    own = {family.register_with_vllm.__module__.split(".")[2] for family in families()} - {"base"}
    assert plugins == own == {"phi3_vision"}


def test_the_search_would_find_one() -> None:
    names = [name for family in families() for name in (family.title, *family.model_types)]
    assert names
    assert all(NAMES.search(name) for name in names)
    assert NAMES.search("from enrich.models.phi3_vision import Phi3VProcessor")


def test_each_model_type_and_layout_belongs_to_one_family() -> None:
    types = [model_type for family in families() for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert {family.layout.name: family.layout for family in families()} == layouts()
    assert all(layouts()[family.layout.name] == family.layout for family in families())


def test_a_checkpoint_is_known_by_its_configuration() -> None:
    assert family_of(TINY_MODEL_PATH).title == "Phi-3-vision"
    assert vision_model("phi3_v") is family_of(TINY_MODEL_PATH).load()
    assert load_processor(TINY_MODEL_PATH).preparation == family_of(TINY_MODEL_PATH).read_preparation(TINY_MODEL_PATH)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json; give a complete checkpoint directory"),
        ("", "config.json is damaged: not a JSON object; fetch it again"),
        ("[]", "config.json is damaged: not a JSON object; fetch it again"),
        ("[" * 100_000, "config.json is damaged: not a JSON object; fetch it again"),
        ('{"model_type": "phi3_v', "config.json is damaged: not a JSON object; fetch it again"),
        ("\xff", "config.json is damaged: not a JSON object; fetch it again"),
        ("{}", "config.json names no model_type; choose one of "),
        ('{"model_type": ["phi3_v"]}', "model_type ['phi3_v'] reads text only, and products are photos; choose one of"),
        ('{"model_type": "llama"}', "model_type 'llama' reads text only, and products are photos; choose one of"),
        ('{"model_type": "kosmos", "vision_config": {}}', "model_type 'kosmos' is not supported; choose one of"),
        ('{"model_type": "a\\nb", "img_processor": 1}', r"model_type 'a\nb' is not supported; choose one of"),
        (json.dumps({"model_type": "own", **REMOTE}),
         "model_type 'own' needs code from its own repository (auto_map), which is never run; choose one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_line(config: str | None, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, "latin-1")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for attempt in (lambda: family_of(tmp_path), lambda: resolve(str(tmp_path)), lambda: load_processor(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            attempt()
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UsageError, match=re.escape(message)):
        find_base(str(tmp_path), None)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", **REMOTE}))
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(CheckpointError, match="which is never run"):
        resolve(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_choosing_a_family_loads_nothing_heavy() -> None:
    program = (
        "import sys; from pathlib import Path; from enrich.models.registry import family_of\n"
        f"family_of(Path({str(TINY_MODEL_PATH)!r}))\n"
        "print(*{'torch', 'transformers', 'pydantic', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
