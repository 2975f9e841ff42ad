"""``python -m organdetr_monai`` is ``organdetr``."""

import sys

from organdetr_monai.cli import main

if __name__ == "__main__":
    sys.exit(main())
