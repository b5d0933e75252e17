"""A Hugging Face hub of this machine, with models of local directories."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.testing.badweb import Web, reply

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Where `huggingface_hub` looks for models while the test runs."""

    def __init__(self, web: Web, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.web = web
        # What HF_ENDPOINT and HF_HUB_CACHE set when huggingface_hub is imported.
        patch.setattr(constants, "ENDPOINT", web.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def hold(self, name: str, directory: Path, *, gated: bool = False) -> None:
        """A model of the files in `directory`; those of a gated one are listed and not given."""
        files = {file.name: file.read_bytes() for file in directory.iterdir()}
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        as_json = {"Content_Type": "application/json"}
        api = f"/api/models/{name}"
        self.web.answers[f"{api}/revision/main"] = reply(
            200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode(), **as_json
        )
        self.web.answers[f"{api}/tree/{COMMIT}?recursive=true&expand=false"] = reply(
            200, json.dumps(tree).encode(), **as_json
        )
        for path, content in files.items():
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            answer = reply(403, b"", X_Error_Code="GatedRepo") if gated else reply(200, content, **headers)
            self.web.answers[f"/{name}/resolve/{COMMIT}/{path}"] = answer

    def refuse(self, name: str, code: str) -> None:
        """What the hub says of a model, or of its revision main: RepoNotFound, RevisionNotFound."""
        self.web.answers[f"/api/models/{name}/revision/main"] = reply(404, b"{}", X_Error_Code=code)

    def asked_for(self, name: str, path: str) -> bool:
        """Whether a file of a model was asked for."""
        return bool(self.web.hits[f"/{name}/resolve/{COMMIT}/{path}"])
