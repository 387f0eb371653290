"""``python -m isochunk.cli``, for launchers that start modules."""

import sys

from isochunk.cli.main import main

sys.exit(main())
