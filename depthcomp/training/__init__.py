"""Fine-tuning a network or a plan, and its parts: configuration, batches, loss, loop, checkpoints, log, processes."""
