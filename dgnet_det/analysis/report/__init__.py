"""The wiring that a detector chooses over many images, as one page and as figures in JSON."""
