"""Prefect flows: who calls what, with which retries, under which name. What they do is enrich.pipeline's."""
