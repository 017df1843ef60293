"""`python -m recbole_vlm2rec …` is the command `recbole-vlm2rec …`, for a checkout that is not installed."""

import sys

from recbole_vlm2rec.cli import main

sys.exit(main())
