"""E2VPT's pruning: score, mask, rewind."""
