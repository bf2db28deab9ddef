"""Train, export and verify the embedded model and its drafters."""
