"""`python -m staticgrad`: the command line."""

from .cli import main

raise SystemExit(main())
