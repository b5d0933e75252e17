"""Photos in, predictions out: adapters, the two engines, and the comparison between them."""
