"""For reviewers of a pull request: are the results current, and what did the change do? Reads only what Git has."""
