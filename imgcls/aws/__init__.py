"""An account of AWS: names, roles, prices, refusals in words, and folders kept in S3.

May be imported by all that reaches AWS; imports `system`, and boto3 only inside functions.
"""
