"""`python -m runtime.warmup`, the earlier name of `python cli.py warm-up`."""

import sys

from .registration.warmup import main

if __name__ == "__main__":
    main(sys.argv[1:])
