"""Settings of a private Prefect server, as environment variables, which Prefect reads once, on import."""

from pathlib import Path

HEARTBEAT_SECONDS = 30  # of workers that deployments/apply.py sets up; the shortest that Prefect allows


def own_server(home: Path) -> dict[str, str]:
    """For a server that keeps everything in `home`, leaves the user's ~/.prefect alone and sends no telemetry."""
    return {
        "PREFECT_HOME": str(home),
        # Prefect 3.7.7 puts these two below ~/.prefect even if PREFECT_HOME is set.
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # Prefect stores the exception of a failed run, else as a pickle
        # In memory, the default, leases are lost when the server stops, and their slots are never freed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }
