"""Methods of compression, one file each, and the plans of those that choose without a solver."""
