"""``python -m kata_shimd.cli``, for a checkout that is not installed."""

import sys

from kata_shimd.cli import main

sys.exit(main())
