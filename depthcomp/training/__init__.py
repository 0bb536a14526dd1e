"""Fine-tuning of a network or a plan: configuration, batches, loss, loop, checkpoints, log, processes."""
