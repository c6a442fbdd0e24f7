"""What a config costs before it runs: parameters, operations, memory."""
