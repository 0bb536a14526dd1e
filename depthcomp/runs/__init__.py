"""Runs of a compression from end to end: pipeline, fine-tuned result, resumption, shards."""
