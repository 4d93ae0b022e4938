"""A search as a tuning job of SageMaker."""
