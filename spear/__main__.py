"""`python -m spear COMMAND`, for torchrun: `torchrun --nproc-per-node=2 -m spear pretrain ...`."""

import sys

from spear.cli import main

if __name__ == "__main__":
    sys.exit(main())
