"""What compiled models run with: the C runtime and its programs, and the loader for Python."""
