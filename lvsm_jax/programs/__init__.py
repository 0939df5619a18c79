"""The programs of the command line, each a thin main."""
