"""The gate before an adapter's first run, on the real vLLM: it passes what is right and blocks what is not."""

import json
from pathlib import Path

import pytest
import torch
import vllm
from PIL import Image

from enrich.engines import vllm_engine
from enrich.errors import ParityFailed
from enrich.models.adapted import save_merged
from enrich.models.checkpoint import load_model
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings
from tests.testing.random_adapter import write_random_adapter
from tests.testing.vllm.serving import photo, settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_a_run_is_blocked_without_the_adapter_and_continues_with_it(tmp_path: Path) -> None:
    adapter = write_random_adapter(tmp_path / "adapter", TINY_MODEL_PATH, num_crops=4)
    (tmp_path / "bucket").mkdir()
    for number in range(6):
        Image.fromarray(photo(number)).save(tmp_path / "bucket" / f"{number}.png")
    chosen = settings(max_new_tokens=24, gate=GateSettings(enabled=False))
    places = str(tmp_path / "bucket"), str(adapter), str(tmp_path / "out")
    base = tmp_path / "base"  # what would be served if the adapter were forgotten
    save_merged(load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu"), adapter, base)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "merged_checkpoint", lambda *_: base)
        with pytest.raises(ParityFailed) as caught:
            run_enrichment(RunRequest(*places, chosen, run_id="night"))

    assert "does not give the trained model's answers: product 0, token " in str(caught.value)
    found = json.loads((tmp_path / "out" / "runs" / "night" / "parity.json").read_text())
    assert (found["rows"], found["same_prompts"], found["ok"]) == (6, 6, False)
    assert found["same_answers"] < found["rows"]
    assert not list((tmp_path / "out").glob("parity/*"))

    record = run_enrichment(RunRequest(*places, chosen, run_id="night"))

    assert record.counts["rows"] == 6
    assert record.versions["vllm"] == vllm.__version__
    found = json.loads((tmp_path / "out" / "runs" / "night" / "parity.json").read_text())
    assert (found["same_prompts"], found["same_answers"], found["ok"]) == (6, 6, True)
    assert found["largest_difference"] < found["largest_allowed"] / 2
    assert len(list((tmp_path / "out").glob("parity/*.json"))) == 1
    assert record.stages is not None
    seconds = {use.stage: use.seconds for use in record.stages.uses}
    assert min(seconds[stage] for stage in ("download", "decode", "render", "engine", "write")) > 0
    assert record.stages.photos == 6
