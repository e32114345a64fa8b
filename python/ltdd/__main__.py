"""``python -m ltdd`` is ``ltdd``."""

import sys

from ltdd.cli.main import main

sys.exit(main())
