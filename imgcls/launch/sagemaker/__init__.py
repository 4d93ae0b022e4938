"""`launch=sagemaker`: a run as a training job, whose results are downloaded into the run folder.

May be imported by `sweeps`, `deploy` and the commands; imports `training`, `aws` and the layers below.
"""
