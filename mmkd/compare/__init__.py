"""Teacher, student and distilled students compared: the same budget, several seeds, one page."""
