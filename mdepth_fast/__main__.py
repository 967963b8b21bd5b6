"""`python -m mdepth_fast`."""

import sys

from mdepth_fast.cli import main

sys.exit(main())
