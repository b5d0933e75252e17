"""What runs leave behind: manifest, history, products.parquet, reviews and the gate before them."""
