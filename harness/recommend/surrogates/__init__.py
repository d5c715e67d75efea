"""Models that predict what an untried pipeline would score, one file each."""
