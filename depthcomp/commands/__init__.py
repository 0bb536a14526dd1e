"""The command line: what each command of `depthcomp` takes, does and shows."""
