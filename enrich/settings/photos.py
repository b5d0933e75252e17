"""Limits on photos from outside, and which files are not photos."""

from typing import Annotated

import regex
from pydantic import AfterValidator, Field, field_validator

from enrich.settings.base import Settings

# Files that cameras, editors, desktops, shops and exports leave next to photos. Files without an extension are photos.
SIDECARS = (
    "*.json", "*.jsonl", "*.ndjson", "*.xml", "*.xmp", "*.yaml", "*.yml", "*.txt", "*.csv", "*.tsv", "*.md", "*.log",
    "*.ini", "*.md5", "*.sha1", "*.sha256", "*.parquet", "*.db", "*.lnk", "*.url", "._*", ".DS_Store", ".directory",
    ".nomedia", ".gitkeep", ".keep", "_SUCCESS", "*_$folder$",
)  # fmt: skip


def _names_products(group_by: str) -> str:
    if group_by in ("photo", "folder"):
        return group_by
    try:
        groups = regex.compile(group_by).groupindex
    except regex.error as error:
        raise ValueError(f"{group_by!r} is not a regular expression: {error}") from error
    if "product_id" not in groups:
        raise ValueError(f"{group_by!r} is neither photo nor folder, and has no group (?P<product_id>...)")
    return group_by


GroupBy = Annotated[str, AfterValidator(_names_products)]


class PhotoLimits(Settings):
    """Limits on untrusted photos, checked before decoding."""

    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
    max_bytes: int = Field(default=32 << 20, gt=0, description="Size of the file")
    max_pixels: int = Field(default=64_000_000, gt=0, description="Width times height")
    decode_seconds: float = Field(default=20.0, gt=0, description="CPU time that decoding a photo may take")
    decode_memory_bytes: int = Field(default=2 << 30, gt=0, description="Address space that decoding a photo may take")
    decode_total_bytes: int = Field(
        default=4 << 30,
        gt=0,
        description="Memory for all photos being decoded that need more than 256 MiB each; each other photo may take "
        "up to 256 MiB",
    )

    @field_validator("formats")
    @classmethod
    def _pillow_reads_them(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        from PIL import Image  # imported only if they are set

        Image.init()
        names = tuple(name.strip().upper() for name in formats)
        known = sorted(Image.OPEN)
        for given, name in zip(formats, names, strict=True):
            if name not in known:
                meant = Image.registered_extensions().get(f".{name.lower().lstrip('.')}")
                hint = f"write {meant}" if meant in known else f"choose from {', '.join(known)}"
                raise ValueError(f"{given!r} is not the name of a format; {hint}")
        if not names:
            raise ValueError("formats is empty, so every photo would be refused; name at least JPEG")
        return names
