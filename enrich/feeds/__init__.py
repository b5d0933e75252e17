"""Exports: rows of products.parquet that are ready for use, in the format of a shop or a feed."""
