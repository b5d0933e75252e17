"""Labelled photos, the training data: reading, splitting, downloading, and a generated sample."""
