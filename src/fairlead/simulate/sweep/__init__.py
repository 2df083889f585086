"""Many simulations: what a cell is, where its result is kept, and which processes run it."""
