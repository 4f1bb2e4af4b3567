"""Commands as a person starts them, on a terminal, and as another program does."""

import os
import pty
import subprocess


def on_terminal(command: list[str]) -> tuple[int, str]:
    """Exit code, and all that a terminal of 120 columns was sent."""
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdout=child, stderr=child, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"})
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        shown += part
    os.close(parent)
    return process.wait(), shown.decode()
