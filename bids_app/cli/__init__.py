"""Command-line interface: parses arguments, runs a command and returns its exit code.

No computation here. Heavy packages are imported only when a command needs them; no other package imports from here.
"""
