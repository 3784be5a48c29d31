"""The training of a model: its step, its run and its loop."""
