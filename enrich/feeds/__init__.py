"""What leaves the project: rows of products.parquet that may be used, in the format that a shop or a feed reads."""
