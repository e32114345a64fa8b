"""Named settings for a machine or a purpose; every value says where it comes from.

A preset is a function of the image size and the number of classes, because published schedules
differ by data set. ``preset(name, ...)`` gives a nested dict that overrides the defaults of
``config.py``; the command line and a config file override the preset in turn.
"""
