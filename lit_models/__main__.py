"""`python -m lit_models`: the command line."""

import os
import sys

# Before torch is imported: its warnings about lost connections are pages of C++ frames.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

from lit_models.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
