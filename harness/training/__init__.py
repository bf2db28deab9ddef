"""How the embedded model and its drafters are trained, exported and verified."""
