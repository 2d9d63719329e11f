"""The rules, pure: no asyncio, sockets, files, wall clock or global random."""
