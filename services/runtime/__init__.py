"""The edge that every service shares: links, HTTP, PostgreSQL, disk, clock, settings."""
