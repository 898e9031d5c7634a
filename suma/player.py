"""Play a video at a moment, in a player that is installed."""

import os
import shutil
import subprocess

PLAYERS = {"mpv": ("--start={}", "--"), "vlc": ("--start-time={}",)}


def player() -> str:
    """Return the first player that is installed. Raises ValueError where there is none."""
    found = next(filter(shutil.which, PLAYERS), "")
    if not found:
        raise ValueError(f"--open needs one of {', '.join(PLAYERS)}, and none is installed: try `apt install mpv`")
    return found


def play(path: str, moment: float) -> None:
    """Start the player at `moment` (seconds), and leave it to itself."""
    name = player()
    command = [name, *(option.format(f"{moment:.2f}") for option in PLAYERS[name]), os.path.abspath(path)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
