"""Empty outputs to write to."""

from pathlib import Path

import pytest

from enrich.storage import Store, open_store


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path / "output") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/output"
    return open_store(uri, create=True)
