"""`python -m scalegan`, the same command, also for a launcher: `accelerate launch -m scalegan evaluate RUN`."""

from __future__ import annotations

from scalegan import cli, launcher

launcher.leave(cli.main())
