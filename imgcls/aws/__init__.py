"""An AWS account: names, roles, prices, readable errors, and folders kept in S3.

May be imported by everything that uses AWS; imports `system`, and boto3 only inside functions.
"""
