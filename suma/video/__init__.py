"""Turn video files into pixels: choose frames, decode them, and show them as players do."""
