"""Many runs as one sweep: the ledger of what happened, and workers."""
