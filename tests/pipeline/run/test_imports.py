"""What processes of a run load: neither the sample's generator nor the trainer, and decoders nothing heavy."""

import subprocess
import sys

import pytest

RUN = [
    "enrichment", "finish", "parity_gate", "planning", "ray_cluster", "ray_runner", "ray_worker", "records", "session",
    "start",
]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            ["enrich.cli", *(f"enrich.pipeline.run.{name}" for name in RUN)],
            ["sample", "enrich.train", "enrich.catalog"],
        ),
        (["flows.tasks"], ["sample"]),
        (["enrich.cli"], ["torch", "transformers", "vllm", "prefect", "polars", "pyarrow"]),
        (["enrich.settings.run", "enrich.errors", "enrich.vocabulary"], ["torch", "polars", "pyarrow"]),
        (["enrich.photos.decoder_process", "enrich.photos.decode"], ["torch", "polars", "pyarrow", "enrich.output"]),
    ],
)
def test_modules_load_none_that_they_do_not_need(modules: list[str], absent: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()

    assert set(modules) <= set(loaded)
    assert [name for name in loaded if name.startswith(tuple(f"{top}." for top in absent)) or name in absent] == []
