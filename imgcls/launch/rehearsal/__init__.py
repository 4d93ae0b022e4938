"""`launch=rehearsal`: the same job on this machine, in a simulated AWS account and containers.

May be imported by `sweeps`, `deploy` and the commands; imports `launch.sagemaker`, `serve`, `aws` and the layers below.
"""
