"""Train many runs: side by side on one machine, or on several machines."""
