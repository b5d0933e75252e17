"""Phi-3-vision and Phi-3.5-vision: a native port to transformers 5, without remote code.

Importing one of the classes below loads torch and transformers and makes the Auto classes know `phi3_v`. Importing the
package alone does not: processes that decode photos need `hd_transform` only, which takes 0.2 s and 77 MB instead of
3.3 s and 354 MB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .family import FAMILY

if TYPE_CHECKING:
    from .auto import register
    from .configuration import Phi3VConfig
    from .image_processing import Phi3VImageProcessor
    from .modeling import Phi3VForCausalLM, Phi3VModel
    from .processing import Phi3VProcessor

__all__ = [
    "FAMILY",
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".auto", __name__), name)
