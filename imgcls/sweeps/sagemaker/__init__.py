"""A search as a tuning job of SageMaker, and a Hydra launcher that runs each job of a multirun as a training job.

May be imported by the commands and `deploy`; imports `sweeps`, `launch` and what is below.
"""
