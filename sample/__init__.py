"""A seeded generator of product photos with a known truth. The drawing needs numpy and Pillow only."""
