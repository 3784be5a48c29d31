"""The machine, the launch, and what several ranks do together."""
