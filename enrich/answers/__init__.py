"""From prompt to prediction: prompts, parsing, token evidence, calibration, review reasons."""
