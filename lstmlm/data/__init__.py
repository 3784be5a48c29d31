"""Text to token ids, and the table that they are trained from. Knows nothing of Accelerate, trackers or YAML."""
