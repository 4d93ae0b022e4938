"""Serving a portable model: a server, SageMaker's handlers, a Lambda function, a client.

Nothing here needs Hydra or Lightning, and with ONNX Runtime not even torch. May be imported by `launch.rehearsal`,
`deploy` and the commands; imports `portable`, `images` and `system`.
"""
