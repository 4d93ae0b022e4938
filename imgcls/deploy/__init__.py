"""Models in Amazon SageMaker: endpoints, a Lambda function in front, and what AWS must allow for them."""
