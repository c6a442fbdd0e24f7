"""Many runs as one thing: plan, trials, search, workers, rows, report, submission."""
