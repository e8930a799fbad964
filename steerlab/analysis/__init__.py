"""Questions over many runs: tidy frames out."""
