"""Write what a run leaves for people: the set, its card, exports and pages."""
