"""Half precision: the graph in float16, and what samples say about it."""
