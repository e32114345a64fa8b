"""From files, archives and Python objects to decoded images."""
