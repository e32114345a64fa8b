"""Views of images: crops, mixing, colours, and the schedule of them."""
