"""From a video file to pixels: frames, their times, and how players would show them."""
