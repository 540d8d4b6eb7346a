"""The commands: arguments in, the exit code out.

No computation, and nothing heavy is imported before a command needs it; no other package imports from here.
"""
