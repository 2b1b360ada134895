"""``python -m gentrain``."""

import sys

from gentrain.cli import main

sys.exit(main())
