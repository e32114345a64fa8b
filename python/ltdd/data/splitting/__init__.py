"""Choose the images to train and test on: splits, classes in order, the long-tailed cut."""
