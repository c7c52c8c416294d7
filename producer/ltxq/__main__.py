"""`python -m ltxq` is `ltxq`."""

import sys

from ltxq.cli import main

if __name__ == "__main__":
    sys.exit(main())
