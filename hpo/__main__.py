"""`python -m sparse_evidence.hpo` is `hpo`."""

from .cli.app import main

main()
