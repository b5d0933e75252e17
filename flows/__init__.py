"""Prefect flows: the order, retries and names of calls into enrich.pipeline, which does the work."""
