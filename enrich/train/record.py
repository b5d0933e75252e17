"""Progress of a fine-tuning and its record, train.json. Loads no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from enrich.phases import Phase
from enrich.settings.training import TrainSettings

_NAMED = 8  # products in a message: a batch of the default size whole
Stopped = Literal["finished", "no improvement", "out of time"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evaluation(_Record):
    """Scores of generated answers on (at most `evaluate.MAX_ROWS` of) the validation split."""

    step: int
    score: float  # 0..1, see evaluate.composite
    parse_rate: float
    category_accuracy: float
    title_token_f1: float
    mdape: float | None  # None where no validation row has a price
    attribute_accuracy: float | None = None  # of all further fields together; None without such fields


class TrainProgress(_Record):
    """Progress of the run. `step` of `steps`: photos while they are read, then optimiser steps.

    Both are 0 while the base model is loaded.
    """

    stage: Literal["photos", "base", "training"]
    step: int
    steps: int
    loss: float | None = None  # mean over the answer tokens of the last step
    evaluation: Evaluation | None = None  # the last one

    @property
    def what(self) -> str:
        """The current work, for a progress bar's caption."""
        if self.stage == "photos":
            return "reading photos"
        if self.stage == "base":
            return "loading the base model"
        score = f", score {self.evaluation.score:.2f}" if self.evaluation else ""
        return f"training, loss {self.loss:.3f}{score}"


class Trainable(_Record):
    """Modules of one name that the adapter is added to."""

    module: str
    count: int
    parameters: int  # of the adapter in all of them


class Spread(_Record):
    """Of a number over all rows."""

    least: int
    median: int
    most: int

    def __str__(self) -> str:
        return f"{self.least} to {self.most}, median {self.median}" if self.least < self.most else f"{self.most}"


class Preflight(_Record):
    """The plan of a training, known before the base is loaded. The trial step measures its memory."""

    trainable: tuple[Trainable, ...]
    merge_only: tuple[str, ...]  # why vLLM could serve the adapter merged only; empty if it could unmerged
    parameters: int  # all, the adapter's among them
    product_code: str  # whose answer is shown
    learned: str  # all of that row that the loss is computed on
    image_tokens: Spread
    length: Spread  # positions of photos, prompt and answer
    photos: int  # in all, of which a prompt shows photos_per_product at most
    products: int
    photos_per_product: int
    epochs: float
    steps: int
    effective_batch_size: int

    @property
    def lines(self) -> list[str]:
        """Lines to print."""
        trained = sum(group.parameters for group in self.trainable)
        many = self.photos_per_product
        several = f" of {self.products:,} products, up to {many} in a prompt," if many > 1 else ""
        names = ", ".join(f"{group.module} x {group.count}" for group in self.trainable)
        return [
            f"trained: {names}: {_count(trained)} of {_count(self.parameters)} parameters "
            f"({trained / self.parameters:.2%})",
            f"learned of product {self.product_code}: {self.learned!r}",
            f"photos: {self.photos:,}{several} for {self.epochs:.3g} epochs: {self.steps:,} steps of "
            f"{self.effective_batch_size}; image tokens {self.image_tokens}; sequence length {self.length}",
            *(f"served merged into the base only: {reason}" for reason in self.merge_only),
        ]


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number:,}"


class Dropped(_Record):
    """A labelled row that was not used."""

    product_code: str
    reason: str
    kind: str = ""  # the reason without what differs from row to row


class Rows(_Record):
    """How many rows were used, and which were not."""

    train: int
    validation: int
    dropped: tuple[Dropped, ...]
    lost_photos: tuple[Dropped, ...] = ()  # cannot be read, of products that have others

    @property
    def lines(self) -> list[str]:
        """Lines to print."""
        if not self.lost_photos:
            return []
        first = self.lost_photos[0]
        return [
            f"photos left out: {len(self.lost_photos):,} that cannot be read, of products that have others (the first, "
            f"product {first.product_code}: {first.reason})"
        ]


class Difference(_Record):
    """The logits and answers of two models compared on the same rows."""

    max_logit_difference: float
    relative_difference: float  # root mean square, to that of the logits
    same_answers: int  # rows whose greedy answers agree token by token


class MergeCheck(Difference):
    """The merged model compared with the unmerged one, on `rows` rows and the same base weights."""

    rows: int
    noise: float  # relative difference of the unmerged model to itself, its sums in another order
    limit: float  # of relative_difference
    ok: bool
    # After training on a 4-bit base: the model that is served, on the base in full precision, compared with the one
    # trained.
    served: Difference | None = None


class Skipped(_Record):
    """An optimiser step whose gradient was not finite: the products whose batches had such a loss, else all of them."""

    step: int
    product_codes: tuple[str, ...]

    @property
    def named(self) -> str:
        """The first few of them, for a message."""
        shown = ", ".join(self.product_codes[:_NAMED])
        more = len(self.product_codes) - _NAMED
        return f"product{'s' * (len(self.product_codes) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")


class Training(_Record):
    """Summary of the steps of a training."""

    trainable_parameters: int
    parameters: int
    steps: int
    planned_steps: int
    skipped_steps: int  # their gradient was not finite
    skipped: tuple[Skipped, ...] = ()  # those steps
    stopped: Stopped
    evaluations: tuple[Evaluation, ...]
    best: Evaluation  # of the weights kept
    images_per_second: float  # without evaluations and the first steps, in which code is compiled


class TrainReport(Training):
    """An adapter's train.json."""

    settings: TrainSettings
    data_fingerprint: str
    base_weights: str  # `checkpoint.weights_signature` of the base, to recognise it
    versions: dict[str, str]
    commit: str | None
    device: str
    rows: Rows
    preflight: Preflight
    merge_check: MergeCheck
    seconds: float  # of this call; a resumed run counts from its resumption
    phases: tuple[Phase, ...] = ()  # what these were spent on
    trial_memory_bytes: int  # peak of the trial step (`trial.try_longest_batch`), counted as the next
    trial_products_per_second: float = 0.0  # of that step; 0: not measured
    peak_memory_bytes: int  # of the GPU where there is one, else of the process
    catalog: str | None = None  # where it was; `data_fingerprint` says what was in it
