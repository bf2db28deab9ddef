"""One run: its specification, stages, folder and journals."""
