"""Data: built-in worlds, shards, loading."""
