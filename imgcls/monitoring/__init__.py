"""Watching a model in use: are the images that it is asked about still like those it was validated on, and is it still
right?

Nothing here needs Hydra or Lightning. May be imported by `training` and the commands; imports `serve`, `report`,
`portable`, `images` and `system`.
"""
