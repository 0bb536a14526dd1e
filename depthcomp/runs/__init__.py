"""One compression from end to end: the pipeline, its fine-tuned result, and its resumption."""
