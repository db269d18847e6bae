"""`python -m lit_models`: the command line."""

import sys

from lit_models.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
