"""Which images are trained and tested on: splits, classes in order, the long-tailed cut."""
