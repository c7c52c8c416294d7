"""The commands that run on a worker's machine. `ltxq.cli` loads them by name."""
