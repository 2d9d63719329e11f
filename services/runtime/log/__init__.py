"""A log in segments: appended in groups, one sync for each, and read back after any ending."""
