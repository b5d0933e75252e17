"""Tiny members of the generic families."""

import pytest
import torch

from tests.testing.tiny_families import MAKERS, Member, open_member, write_member


@pytest.fixture(scope="session", params=sorted(MAKERS))
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """One of each family. Tests leave it as it is."""
    torch.set_num_threads(1)
    return open_member(write_member(request.param, tmp_path_factory.mktemp(request.param) / "tiny"))


@pytest.fixture(scope="session", params=sorted(MAKERS))
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """One of each family that can memorise answers."""
    torch.set_num_threads(1)
    return open_member(write_member(request.param, tmp_path_factory.mktemp(request.param) / "tiny", vocabulary=0.2))
