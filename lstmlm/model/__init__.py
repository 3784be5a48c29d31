"""The model, its loss and dropout masks, and a model on disk. Knows nothing of Accelerate or trackers."""
