"""A run that was begun."""

from dataclasses import dataclass
from datetime import datetime

from enrich.history import committed_shards
from enrich.infer.adapter import Adapter
from enrich.manifest import Manifest
from enrich.run_record import RunInfo
from enrich.settings import RunSettings
from enrich.storage import Store


@dataclass(frozen=True)
class Run:
    """A run that was begun: where it reads and writes, with what, and what it has to do."""

    images: Store
    output: Store
    adapter: Adapter
    adapter_uri: str  # where it was read from
    settings: RunSettings
    manifest: Manifest
    started_at: datetime

    @property
    def info(self) -> RunInfo:
        return self.manifest.run

    def missing_shards(self) -> list[int]:
        """Shards not committed yet, ascending: all of them at first, the rest after a restart."""
        done = committed_shards(self.output, self.info) if self.manifest.shards else set()
        return [shard for shard in self.manifest.shards if shard not in done]
