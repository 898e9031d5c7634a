"""SUMA in the browser: text to videos, video to captions and similar videos, and why. `python app.py --help`."""

import sys

from suma.app.page import main

if __name__ == "__main__":
    sys.exit(main())
