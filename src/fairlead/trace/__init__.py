"""Request traces: readers of other projects' formats, generators, and our own decision log."""
