"""A Prefect server with authentication on, its deployments and workers, and a small bucket that the tiny base enriches.

All real: processes that tests kill, an adapter with random weights, so that runs take seconds, and one bucket each.
"""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.apply import ENVIRONMENT
from deployments.bring_up import QUERY_SECONDS
from enrich.settings.models import TINY_MODEL_PATH
from flows.home import own_server
from tests.testing.live import DATABASE, PASSWORD, WEBHOOK_SECRET, Live, Shop, free_port
from tests.testing.random_adapter import write_random_adapter


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Server, pools, limits, automations, deployments and a worker for each pool."""
    home, port = tmp_path_factory.mktemp("live"), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    prefect = Live(
        home,
        port,
        clean
        | own_server(home)
        | ENVIRONMENT
        | {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_ENCRYPTION_KEY": "5xPlz0yxQo7nn0eFHQ1mJPxXq4hY0hQnX8ccPWyjb2E=",
            "PREFECT_WORKER_QUERY_SECONDS": QUERY_SECONDS,
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PYTHONUNBUFFERED": "1",
        }
        | ({"PREFECT_API_DATABASE_CONNECTION_URL": DATABASE} if DATABASE else {}),
    )
    listener = HTTPServer(("127.0.0.1", 0), _listening(prefect.told))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    prefect.environment["ENRICH_WEBHOOK_URL"] = f"http://127.0.0.1:{listener.server_port}/{WEBHOOK_SECRET}"
    try:
        prefect.start_server()
        prefect.command("deployments.apply")
        prefect.command("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        for pool in ("cpu", "gpu"):
            prefect.start_worker(pool)
        yield prefect
    finally:
        prefect.stop()
        listener.shutdown()


def _listening(told: list[str]) -> type[BaseHTTPRequestHandler]:
    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Listener


@pytest.fixture(scope="session")
def photos_and_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("shop")
    (root / "bucket").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (42, 42, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((336, 336)).save(root / "bucket" / f"{number:02}.jpg")
    (root / "bucket" / "page.jpg").write_text("<html>")
    write_random_adapter(root / "speaking", TINY_MODEL_PATH, num_crops=1, idle=True)
    return root / "bucket", write_random_adapter(root / "adapter", TINY_MODEL_PATH, num_crops=1)


@pytest.fixture
def shop(photos_and_adapter: tuple[Path, Path], tmp_path: Path) -> Shop:
    return Shop(*photos_and_adapter, tmp_path / "output")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a server."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)
