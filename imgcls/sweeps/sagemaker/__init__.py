"""A search as a tuning job of SageMaker, and a Hydra launcher that makes each job of a multirun a training job.

May be imported by the commands and `deploy`; imports `sweeps`, `launch` and what is below.
"""
