"""ydht: a multi-tenant distributed key-value store and unique-ID service."""
