"""The commands: arguments in, the exit code at the end. Nothing else of the package imports from here."""
