"""``python -m ltdd`` is ``ltdd``."""

import sys

from ltdd.cli import main

sys.exit(main())
