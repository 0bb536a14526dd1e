"""The command line as `python -m depthcomp`."""

from depthcomp.commands.main import main

main()
