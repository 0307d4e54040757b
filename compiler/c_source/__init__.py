"""Stage functions (TIR) as readable, portable C11 source."""
