"""One run over a bucket, from its plan to its report."""
