"""Make torchvision importable with a CPU torch: `python .ci/declare_operators.py`, after each installation.

Its wheel for Linux is a CUDA build, whose operators need a torch for GPUs. All else of it is Python, which vLLM imports
for most families of vision models; that fails only because two of the operators are not even declared.
"""

from importlib.util import find_spec
from pathlib import Path

DECLARATIONS = """
if not _has_ops():  # added by .ci/declare_operators.py of enrich
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

spec = find_spec("torchvision")  # which does not import it
if spec is None or spec.origin is None:
    raise SystemExit("torchvision is not installed")
file = Path(spec.origin).with_name("extension.py")
if DECLARATIONS not in file.read_text():
    file.write_text(file.read_text() + DECLARATIONS)
