"""Importing this module registers Phi-3-vision with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoProcessor

from .configuration import Phi3VConfig
from .image_processing import Phi3VImageProcessor
from .modeling import Phi3VForCausalLM, Phi3VModel
from .processing import Phi3VProcessor


def register() -> None:
    """Make AutoConfig, AutoModelForCausalLM, AutoProcessor, ... know `phi3_v`; may run any number of times."""
    AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
    AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
    AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
    # One class serves as either backend, so that it is found with and without torchvision.
    backends = {"pil": Phi3VImageProcessor, "torchvision": Phi3VImageProcessor}
    AutoImageProcessor.register(Phi3VConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)


register()
