"""The tower's attention against PyTorch's, in Triton's interpreter, and where it takes the place of vLLM's."""

from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.testing.vllm.hopper import ptx

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("crops", "tokens", "heads", "size"),
    [(2, 577, 2, 64), (3, 65, 3, 16), (2, 100, 1, 32), (3, 64, 2, 16), (2, 1, 2, 16)],
    ids=["published", "one tile of patches", "a part of a tile", "one short of a tile", "the class token alone"],
)
def test_the_tokens_of_a_crop_see_each_other(
    interpreter: ProcessPoolExecutor, crops: int, tokens: int, heads: int, size: int
) -> None:
    out, wanted = interpreter.submit(attend, crops, tokens, heads, size).result()
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=1e-5)


def test_a_crop_that_overflowed_spoils_no_other(interpreter: ProcessPoolExecutor) -> None:
    """Where tiles reach into the next crop."""
    out, wanted = interpreter.submit(attend, 2, 100, 1, 16, overflowed=1).result()
    torch.testing.assert_close(out[0], wanted[0], atol=2e-6, rtol=1e-5)
    assert out[1].isnan().all()


def attend(
    crops: int, tokens: int, heads: int, size: int, overflowed: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's answer and PyTorch's."""
    from enrich.models.phi3_vision.vllm_tower_attention import TowerAttention

    torch.manual_seed(0)
    states = torch.randn(crops, tokens, 3 * heads * size)
    if overflowed is not None:
        states[overflowed] = torch.nan
    parts = states.chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, size)).transpose(1, 2) for part in parts)
    wanted = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return TowerAttention(heads)(*parts), wanted


@pytest.mark.parametrize("whole", [True, False])
def test_the_kernel_compiles_for_hopper(whole: bool, compiler: ProcessPoolExecutor) -> None:
    """To tensor cores and to loads of whole tiles: without either it would be slower than what it replaces."""
    code = compiler.submit(compile_for_hopper, whole).result()
    assert "wgmma.mma_async" in code
    assert "cp.async.bulk.tensor" in code


def compile_for_hopper(whole: bool) -> str:
    from enrich.models.phi3_vision.vllm_tower_attention import _TILE, _tower_kernel

    sizes = {"WIDTH": 1024, "SIZE": 64, "TILE": _TILE, "WHOLE": whole}
    kinds = dict.fromkeys(("queries", "keys", "values"), f"tensordesc<bf16[{_TILE}, 64]>")
    kinds |= dict.fromkeys(("key", "value", "out"), "*bf16")
    return ptx(_tower_kernel, sizes, {**kinds, "scale": "fp32"}, num_warps=4)


def test_it_takes_the_place_of_vllms_on_hopper_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    from enrich.models.phi3_vision.vllm_tower_attention import TowerAttention

    assert not TowerAttention.fits(64, torch.bfloat16)
    monkeypatch.setattr(type(current_platform), "is_device_capability", lambda self, capability: capability == 90)
    assert TowerAttention.fits(64, torch.bfloat16)
    assert not TowerAttention.fits(64, torch.float32)
    assert not TowerAttention.fits(80, torch.bfloat16)


def test_a_layer_compiles_around_it_in_one_piece() -> None:
    from torch._dynamo.testing import EagerAndRecordGraphs

    from enrich.models.phi3_vision.vllm_tower_attention import TowerAttention

    graphs = EagerAndRecordGraphs()
    attention = TowerAttention(2)
    layer = torch.compile(lambda states: attention(*states.chunk(3, dim=-1)), backend=graphs, dynamic=True)
    with torch.device("meta"):
        assert layer(torch.empty(3, 65, 96)).shape == (3, 65, 32)
    assert len(graphs.graphs) == 1
    assert "tower_attention" in graphs.graphs[0].code
