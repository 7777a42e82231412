"""What needs torch: the base model, LoRA on it, the training loop, evaluation. `options` alone needs nothing."""
