"""What a trial costs: seconds, memory, energy, FLOPs and money."""
