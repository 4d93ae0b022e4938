"""The models: timm backbones with heads, losses, optimisers, schedules, and the LightningModule that trains them.

May be imported by everything above; imports `images` and `system`, and knows nothing of data sets, Hydra or launching.
"""
