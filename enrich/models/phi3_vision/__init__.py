"""A native port of Phi-3-vision to transformers 5: no remote code.

Importing one of the names below loads torch and transformers and makes the Auto classes know `phi3_v`. Importing the
package alone does not: processes that decode photos need `hd_transform` only, which takes 0.2 s and 77 MB instead of
3.3 s and 354 MB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto import register
    from .configuration import Phi3VConfig
    from .image_processing import Phi3VImageProcessor
    from .modeling import Phi3VForCausalLM, Phi3VModel
    from .processing import Phi3VProcessor

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VModel", "Phi3VProcessor", "register"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".auto", __name__), name)
