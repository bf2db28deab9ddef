"""`python -m harness.check`: see `harness.check`."""

from __future__ import annotations

import sys

from harness.check import main

if __name__ == "__main__":
    sys.exit(main())
