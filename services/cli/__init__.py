"""The `ydht` command."""
