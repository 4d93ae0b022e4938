"""`launch=sagemaker`: a run as a training job, followed and brought back into its run folder.

May be imported by `sweeps`, `deploy` and the commands; imports `training`, `aws` and what is below.
"""
