"""What a model is asked and what becomes of its answer: prompt, parsing, evidence, calibration, review reasons."""
