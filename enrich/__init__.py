"""Titles, categories and price estimates for product photos, from Phi-3-vision fine-tuned on a retailer's catalog.

Importing this package is cheap: torch, transformers, vLLM and Prefect load only where they are used.
"""

__version__ = "0.2.0"
