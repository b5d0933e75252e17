"""The default models of the settings, and the revisions at which hub models are pinned."""

from collections.abc import Mapping
from pathlib import Path

AUTO = "auto"
TINY_MODEL = "phi3v-tiny"
TINY_MODEL_PATH = Path(__file__).parents[1] / "assets" / TINY_MODEL
DEFAULT_MODEL = "microsoft/Phi-3-vision-128k-instruct"
# Only of the models that this package ports: the port was written for the files of these commits.
REVISIONS: Mapping[str, str] = {
    DEFAULT_MODEL: "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed",
    "microsoft/Phi-3.5-vision-instruct": "4a0d683eba9f1d0cbfb6151705d1ee73c25a80ca",
}
