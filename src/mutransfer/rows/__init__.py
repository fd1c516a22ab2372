"""A table of runs, wherever it is: its rows, what its columns are called, the values of its cells."""
