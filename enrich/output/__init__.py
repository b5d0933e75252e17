"""The output of runs: manifest, history, products.parquet, reviews, and the publish gate."""
