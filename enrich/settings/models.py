"""The models that settings name by default."""

from pathlib import Path

AUTO = "auto"
TINY_MODEL = "phi3v-tiny"
TINY_MODEL_PATH = Path(__file__).parents[1] / "assets" / TINY_MODEL
DEFAULT_MODEL = "microsoft/Phi-3-vision-128k-instruct"
DEFAULT_REVISION = "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed"
