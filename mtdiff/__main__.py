"""python -m mtdiff is the command mtdiff."""

from mtdiff.cli import main

main()
