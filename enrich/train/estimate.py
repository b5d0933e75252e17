"""What a fine-tuning will take, before it starts: memory from what the backward pass keeps, time from multiplications.

Checked against the measurements in tests/train/test_estimate.py (one H200, 3.8 B parameters in bf16).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from enrich.settings.training import TrainSettings
from enrich.train.record import Memory

NF4_BYTES = 0.52  # of a weight, with its doubly quantised scales (QLoRA, arXiv 2305.14314)
ADAPTER_BYTES = 16  # of a trainable parameter: float32 weight, gradient and AdamW's two moments
# What GPUs were measured to sustain in training (bf16, eager, batch 8 and more), in FLOP/s. Others are timed.
_SUSTAINED = {"H200": 2.6e14, "H100": 2.6e14}
_COMPILED = 1.5  # times that, with compiled layers: 32.9 photos/s for 21.8
_SHARE_OF_MATMUL = 0.35  # of the rate of one large product, what a whole step reaches: that of the H200 above
_LAYER_SECONDS = {"cuda": 5e-3, "cpu": 1e-3}  # least for a layer forward and backward, however small: its launches
_DECODING = 0.2  # of that for a layer and a generated token, forward only


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide what it costs to train an adapter on it."""

    parameters: int  # frozen ones, the vision tower's among them
    trainable: int
    layer_parameters: int  # of all decoder layers
    vision_parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of keys and of values
    vocabulary: int
    crop_positions: int  # positions of a crop in the vision tower
    vision_layers: int  # of the tower, those that are used
    vision_hidden: int
    itemsize: int  # bytes of a frozen weight and of an activation: 2 in bf16


@dataclass(frozen=True)
class Work:
    """What a run is made of; lengths in positions."""

    photos: int
    unseen: int  # photos of an evaluation
    steps: int
    mean_length: float
    answer: int  # tokens of the longest


def memory(
    shape: Shape,
    *,
    rows: int,
    length: int,
    kept: int,
    checkpointing: bool,
    compiled: bool = False,
    load_in_4bit: bool = False,
    adapted_crops: int = 0,
) -> Memory:
    """Bytes at the peak of a run in batches of `rows` rows of `length` positions, logits at `kept` of each.

    `adapted_crops` are those of a photo whose activations the backward pass needs: all, or none of a frozen tower. The
    CUDA context (about 0.5 GiB) and what the allocator wastes come on top.
    """
    training = rows * _training_bytes(shape, length, kept, checkpointing=checkpointing, compiled=compiled)
    training += rows * adapted_crops * shape.crop_positions * _tower_bytes(shape, checkpointing=checkpointing)
    saved = int((shape.itemsize - NF4_BYTES) * shape.layer_parameters) if load_in_4bit else 0
    return Memory(
        weights=shape.itemsize * shape.parameters - saved,
        adapter=ADAPTER_BYTES * shape.trainable,
        training=training,
        evaluation=rows * length * _generating_bytes(shape),
    )


def _training_bytes(shape: Shape, length: int, kept: int, *, checkpointing: bool, compiled: bool) -> int:
    """What a row adds when the backward pass begins, or is within the last layer."""
    layer = _layer_bytes(shape, compiled=compiled)
    # The backward pass of a layer holds gradients of the MLP's insides: product, silu and gate, and gate_up again.
    working = 5 * shape.itemsize * shape.intermediate
    # Logits, their float32 copy, its log-softmax and its gradient; all but the logits are gone when layers go backward.
    logits = (shape.itemsize + (4 if shape.itemsize < 4 else 0) + 8) * shape.vocabulary
    if checkpointing:  # a layer's input for each, and all of one layer at a time
        stored, recomputed = shape.layers * shape.itemsize * shape.hidden, layer
    else:
        stored, recomputed = shape.layers * layer, 0
    return length * stored + max(kept * logits, length * (recomputed + working))


def _tower_bytes(shape: Shape, *, checkpointing: bool) -> int:
    """What a position of an adapted tower keeps: 34 bytes a layer and width in bf16, attention's matrix left out
    (Korthikanti et al., arXiv 2205.05198); with checkpoints a layer's input for each, and all of one layer."""
    layer = 17 * shape.itemsize * shape.vision_hidden
    if checkpointing:
        return shape.vision_layers * shape.itemsize * shape.vision_hidden + layer
    return shape.vision_layers * layer


def _generating_bytes(shape: Shape) -> int:
    """What a position adds while answers are generated: keys and values of all layers, the insides of one MLP."""
    return 2 * shape.layers * shape.itemsize * shape.key_value + 4 * shape.itemsize * shape.intermediate


def _layer_bytes(shape: Shape, *, compiled: bool) -> int:
    """What one decoder layer keeps of one position for the backward pass.

    In bf16 26 D + 8 I = 145 kB for D = 3072 and I = 8192: the inputs of both norms in float32 (8 D); the inputs of the
    four adapters (2 D each, down_proj's 2 I); queries and keys as rotated, the fused projection that the values are a
    view of, and attention's output (2 + 2 + 6 + 2 D); gate, up (4 I) and silu of the gate (2 I). Compiled, norms are
    computed again from bf16 (2 D each) and so is silu.
    """
    norms, gates = (2 * shape.itemsize, 3) if compiled else (8, 4)
    return (norms + 9 * shape.itemsize) * shape.hidden + gates * shape.itemsize * shape.intermediate


def seconds(
    shape: Shape, work: Work, settings: TrainSettings, device: torch.device, rate: float, *, compiled: bool = False
) -> float:
    """About how long features, training and evaluations take at `rate` FLOP/s of code that is not compiled.

    A frozen base costs 4 FLOP a parameter and position (forward 2, backward of the activations 2); checkpointing makes
    the forward pass twice. An adapted tower costs that too, at every look.
    """
    rate *= _COMPILED if compiled else 1
    rows, layer_seconds = settings.batch_size, _LAYER_SECONDS[device.type]
    forward = rows * 2 * (shape.layer_parameters * work.mean_length + shape.hidden * shape.vocabulary * work.answer)
    passes = 3 if settings.gradient_checkpointing else 2
    batch = max(passes * forward / rate, shape.layers * layer_seconds)
    training = work.steps * settings.effective_batch_size / rows * batch
    decoding = work.answer * shape.layers * layer_seconds * _DECODING
    evaluations = settings.evaluations * math.ceil(work.unseen / rows) * (forward / rate + decoding)
    looked_at = work.photos + work.unseen
    if settings.adapt_vision:
        looked_at = passes * work.steps * settings.effective_batch_size + settings.evaluations * work.unseen
    elif not settings.cache_vision_features:
        looked_at = work.steps * settings.effective_batch_size + settings.evaluations * work.unseen
    crops = (settings.num_crops + 1) * shape.crop_positions
    return training + evaluations + looked_at * 2 * shape.vision_parameters * crops / rate


def sustained_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that training reaches on `device`: measured before for the GPUs we know, else from a short product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, rate in _SUSTAINED.items():
            if known in name:
                return rate
    return _SHARE_OF_MATMUL * _matmul_rate(device, dtype)


def _matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 4) -> float:
    """The best of a few products, large enough for the device: 0.1 s on a slow core, a few ms on a GPU."""
    size = 4096 if device.type == "cuda" else 512
    matrix = torch.full((size, size), 0.5, device=device, dtype=dtype)

    def timed() -> float:
        began = time.perf_counter()
        result = matrix @ matrix
        result[0, 0].item()  # waits for the GPU
        return time.perf_counter() - began

    return 2 * size**3 / min(timed() for _ in range(runs))


def smaller_settings(settings: TrainSettings) -> Iterator[TrainSettings]:
    """Settings that take less memory, the faster ones first; all but the last, a 4-bit base, give the same result.

    A smaller batch costs least (a fifth of the rate at 4, most of it at 1), recomputing activations a third.
    """
    sizes = [size for size in range(settings.batch_size, 0, -1) if settings.effective_batch_size % size == 0]
    ways = [(settings.gradient_checkpointing, settings.load_in_4bit), (True, settings.load_in_4bit)]
    if not (settings.adapt_vision or settings.use_dora):
        ways.append((True, True))
    for checkpointing, load_in_4bit in dict.fromkeys(ways):
        for size in sizes:
            changes = {"batch_size": size, "gradient_checkpointing": checkpointing, "load_in_4bit": load_in_4bit}
            yield settings.model_copy(update=changes)


def first_that_fits(
    candidates: Iterable[TrainSettings], needed: Callable[[TrainSettings], int], available: int
) -> TrainSettings | None:
    """The first of `candidates` that needs at most `available` bytes."""
    return next((candidate for candidate in candidates if needed(candidate) <= available), None)
