"""Trained adapters as things: their files in use, banks of many, mixed batches, combinations."""
