"""Amazon SageMaker: the parts of which `launch=sagemaker` is to be made."""
