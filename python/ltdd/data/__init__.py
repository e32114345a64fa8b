"""Real data: the long-tailed split, the sources, augmentation and the views of a student."""
