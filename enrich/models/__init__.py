"""The models that can be trained and served."""
