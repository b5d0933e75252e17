"""Fine-tuning: labelled photos to a LoRA adapter that is known to work when merged."""
