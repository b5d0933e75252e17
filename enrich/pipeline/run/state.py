"""A run that was started."""

from dataclasses import dataclass, field
from datetime import datetime

from enrich.engines.adapter import Adapter, read_metrics
from enrich.output.history import committed_shards, shard_key
from enrich.output.manifest import Manifest
from enrich.output.run_record import RunInfo
from enrich.phases import Phases
from enrich.pipeline.run.request import RunRequest
from enrich.scores.worth import Worth, judge_worth
from enrich.settings.run import GateSettings, RunSettings
from enrich.storage import Store


@dataclass(frozen=True)
class Run:
    """A run that was started: its request, where it reads and writes, and its work."""

    request: RunRequest
    images: Store
    output: Store
    adapter: Adapter
    manifest: Manifest
    started_at: datetime
    phases: Phases = field(default_factory=Phases)  # of this process's start

    @property
    def settings(self) -> RunSettings:
        return self.request.settings

    @property
    def info(self) -> RunInfo:
        return self.manifest.run

    @property
    def worth(self) -> Worth:
        """Whether the adapter is better than guessing without a photo."""
        return judge_worth(read_metrics(self.adapter.path))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Messages for the user before the first product is answered, one line each."""
        return (*self.manifest.warnings, *adapter_warnings(self.worth, self.settings.gate))

    def missing_shards(self) -> list[int]:
        """Shards not committed yet, ascending: all of them at first, the rest after a restart."""
        done = committed_shards(self.output, self.info) if self.manifest.shards else set()
        return [shard for shard in self.manifest.shards if shard not in done]

    def is_committed(self, shard: int) -> bool:
        """Whether a shard is committed: one request, where `missing_shards` lists every shard."""
        return self.output.head(shard_key(self.info, shard)) is not None


def adapter_warnings(worth: Worth, gate: GateSettings) -> tuple[str, ...]:
    """A warning about an adapter that was not shown to be good, and its consequence; none if it is good or allowed."""
    if worth.state == "beats" or gate.allow_weak_adapter:
        return ()
    held = worth.state == "weak" and gate.enabled
    return (f"{worth.text}{'; the run will be held back, see gate.allow_weak_adapter' if held else ''}",)
