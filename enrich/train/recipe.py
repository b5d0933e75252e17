"""Choose the model to train, and the settings that suit it."""

import math
from pathlib import Path

from enrich.models.registry import local_directory
from enrich.settings.models import AUTO, DEFAULT_MODEL, REVISIONS, TINY_MODEL
from enrich.settings.training import TrainSettings

# What suits the tiny base, 8.2 M parameters on a CPU, where the defaults suit 4 B on a GPU.
# Its words are one retailer's, so a catalog's new words must be learned at the output layer: at one rate for all, high
# enough for that, what the other layers can see is overwritten before it is put to use (research/tiny_base/README.md).
TINY_RECIPE: dict[str, object] = {
    "learning_rate": 1e-3,
    "output_learning_rate": 8e-3,
    "price_weight": 4,
    "lora_r": 16,
    "lora_alpha": 64,
    "evaluations": 1,  # at the end, where the learning rate is 0; each costs a twentieth of the time
}
TINY_BATCH = 8  # photos in an optimiser step, or the next multiple of a batch_size asked for
TINY_PHOTOS = 10_000  # shown in all, 1,250 steps: a small catalog is shown more often
TINY_EPOCHS = (1.0, 12.0)  # a large catalog is shown once: it is learned by its many titles (research/tiny_base)


def resolve_model(settings: TrainSettings, *, gpu: bool, rows: int | None = None) -> TrainSettings:
    """`settings` with the model named, its revision pinned, and the recipe that suits it where none was asked for.

    `rows` are those of the training split, where they are known.
    """
    model = settings.model
    if model == AUTO:
        model = DEFAULT_MODEL if gpu else TINY_MODEL
    elif model != TINY_MODEL and (local := local_directory(model)):
        model = str(local.absolute())  # the adapter names its base: by a relative path nobody else would find it
    updates: dict[str, object] = {"model": model}
    if model == TINY_MODEL:
        recipe = {**TINY_RECIPE, "effective_batch_size": math.lcm(TINY_BATCH, settings.batch_size)}
        if rows:
            recipe["epochs"] = min(max(TINY_PHOTOS / rows, TINY_EPOCHS[0]), TINY_EPOCHS[1])
        updates |= {name: value for name, value in recipe.items() if name not in settings.model_fields_set}
    if settings.revision is None:
        updates["revision"] = REVISIONS.get(model)
    return TrainSettings.model_validate({**settings.model_dump(), **updates})


def tiny_recipe(asked: TrainSettings, base: Path, products: int) -> TrainSettings:
    """The tiny base's settings for a catalog of that many products, for another `base` of its size.

    Args:
        asked: settings whose model is the tiny base.
    """
    split = asked.split
    rows = round(products * (1 - split.validation - split.calibration - split.test))
    return resolve_model(asked, gpu=False, rows=rows).model_copy(update={"model": str(base.absolute())})
