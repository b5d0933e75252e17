"""Which photos of a product an epoch of training shows, and at which size."""

from dataclasses import dataclass
from random import Random

from enrich.answers.prompt import Prompt
from enrich.models.protocols import Processor
from enrich.train.examples import Example, largest, show


@dataclass(frozen=True)
class Showing:
    """The main photo first, then a number of further ones and an order that differ from epoch to epoch.

    A model that always saw the same photos in the same places would memorise products, and would not know what
    to make of a product with fewer. But an answer often says what only a photo that is left out shows, and learning
    such answers teaches guessing; so half of the prompts show as many photos as fit, as serving does. Where there are
    two looks, half of the prompts show the first. What an epoch shows depends on the seed, the epoch and the product
    alone, so a training that is continued shows the same.
    """

    processor: Processor
    prompt: Prompt
    most: int  # photos in a prompt
    seed: int

    def vary(self, example: Example, epoch: int) -> Example:
        """The example as shown in `epoch`, counted from 0."""
        if len(example.views) == 1:
            return example
        draw = Random(f"{self.seed} {epoch} {example.product.product_code}")
        most = min(self.most, len(example.photos)) - 1
        count = most if draw.random() < 0.5 else draw.randint(0, most)
        further = draw.sample(range(1, len(example.photos)), count)
        main = example.views.index(example.first) if example.first and draw.random() < 0.5 else 0
        return show(example, [main, *further], self.processor, self.prompt)

    def longest(self, example: Example) -> Example:
        """The example with the photos that take the most tokens."""
        return show(example, largest(example, self.most), self.processor, self.prompt)
