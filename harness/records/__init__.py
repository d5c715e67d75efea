"""What ran and what came back: the only thing that running and learning share."""
