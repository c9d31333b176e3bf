"""Several experiments beside each other: rows, tables and drawings."""
