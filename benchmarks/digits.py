"""One's own digits: MNIST's test digits drawn anew in many ways, read as `predict --images` reads them.

A network is trained by `mnist.yaml`. Then test digits, drawn at random for each seed, are enlarged and put on paper,
boards and canvases, and the pictures are read and classified. What is read from pages with several digits, with none,
and with strokes that touch the border is counted, too.
"""
