"""Methods of compression, one file each, and the plans of methods without a solver."""
