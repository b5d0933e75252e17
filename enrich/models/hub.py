"""Finding checkpoints: in a directory, or at the Hugging Face hub."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or of httpx2, whichever this version of the hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from enrich.models.checkpoint import USABLE, check_kind, checked, load_processor
from enrich.models.registry import CheckpointError, local_directory

# Configuration, tokenizer and weights; neither code (*.py) nor pickles (*.bin, *.pt) are ever fetched.
_SMALL_FILES = ["*.json", "tokenizer.model", "chat_template.jinja"]
_HUB_FILES = [*_SMALL_FILES, "*.safetensors"]


def resolve(name_or_path: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint: a local one, else a Hugging Face model, downloaded or from its cache.

    Raises:
        CheckpointError: no such local directory; the hub does not give that revision; or `checked` refuses it.
        ValueError: a file is damaged.
    """
    if local := local_directory(name_or_path):
        return checked(local)
    if os.path.isfile(os.path.expanduser(name_or_path)):
        raise CheckpointError(name_or_path, f"a file; {USABLE}")
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(name_or_path, "no such directory; give a local checkpoint or a Hub name")
    place = f"{name_or_path} at revision {revision or 'main'}"
    with _hub_errors(place, name_or_path):
        small = Path(snapshot_download(name_or_path, revision=revision, allow_patterns=_SMALL_FILES))
        check_kind(small)  # before gigabytes of weights
        load_processor(small)
        return checked(Path(snapshot_download(name_or_path, revision=revision, allow_patterns=_HUB_FILES)))


@contextmanager
def _hub_errors(place: str, name: str) -> Iterator[None]:
    """Errors of the hub, and of what it delivered, as CheckpointErrors of `place`."""
    login = "and log in: `hf auth login`, or HF_TOKEN"
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(place, error.reason) from error
    except HFValidationError as error:
        raise CheckpointError(name, "neither a local directory nor a Hub name") from error
    except GatedRepoError as error:
        raise CheckpointError(place, f"gated; accept its terms at https://huggingface.co/{name} {login}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(place, f"not found on the hub, or private; check the name {login}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(place, "the hub has no such revision; leave it out, or give a full commit") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, HTTPError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        advice = "check the name and the network, or give a local directory"
        away = not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500
        raise CheckpointError(place, f"cannot be fetched ({reason}); {advice}", away=away) from error
