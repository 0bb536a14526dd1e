"""Networks that are no module as they come: files, and parts of larger networks."""
