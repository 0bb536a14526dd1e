"""The parts of fine-tuning: configuration, batches, loss, loop, checkpoints, log, processes."""
