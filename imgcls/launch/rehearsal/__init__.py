"""`launch=rehearsal`: the same job, in an account of AWS that is this process and containers that are its children.

May be imported by `sweeps`, `deploy` and the commands; imports `launch.sagemaker`, `serve`, `aws` and what is below.
"""
