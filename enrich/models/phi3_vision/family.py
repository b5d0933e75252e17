"""What `enrich.models.registry` knows of Phi-3-vision. Loads neither torch, transformers nor pydantic by itself."""

from pathlib import Path

from ..base import Family, Layout, Preparation, Published
from ..protocols import VisionModel
from .hd_transform import hd_transform, resized_size

PHOTO_FILE = "preprocessor_config.json"


def read_preparation(directory: Path) -> Preparation:
    """How an adapter's photos are prepared. ValueError: its file is damaged or says something impossible."""
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    class Crops(BaseModel):
        model_config = ConfigDict(extra="ignore", strict=True)

        num_crops: int = Field(ge=1, le=16)
        image_size: int = Field(default=336, ge=14, le=4096)  # the value of the original, whose file omits it
        fast_decode: bool = False
        preparation_version: int = 1  # adapters from before it was recorded
        photos_per_product: int = Field(default=1, ge=1, le=5)  # named where a prompt shows several photos
        more_crops: int = Field(default=1, ge=1, le=16)

    try:
        crops = Crops.model_validate_json((directory / PHOTO_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError("names no num_crops") from error
    return Preparation(
        crops.num_crops,
        crops.image_size,
        crops.fast_decode,
        crops.preparation_version,
        crops.photos_per_product,
        crops.more_crops,
    )


def _load() -> VisionModel:
    from . import vision_model

    return vision_model


def _register_with_vllm() -> None:
    from .vllm_plugin import register

    register()


FAMILY = Family(
    title="Phi-3-vision",
    model_types=("phi3_v",),
    layout=Layout("crops", hd_transform, resized_size),
    photo_file=PHOTO_FILE,
    read_preparation=read_preparation,
    load=_load,
    register_with_vllm=_register_with_vllm,
    licence="MIT",
    published=(
        Published("microsoft/Phi-3-vision-128k-instruct", 4.147, 32, 3072, 8192, 393_216),
        Published("microsoft/Phi-3.5-vision-instruct", 4.147, 32, 3072, 8192, 393_216),
    ),
)
