"""`python -m mpsoftmax` is the same command as `mpsoftmax`; torchrun starts ranks this way."""

import sys

from mpsoftmax.cli import main

if __name__ == "__main__":
    sys.exit(main())
