"""What is trained: timm backbones with heads, losses, optimisers, schedules, and the LightningModule of them.

May be imported by everything above; imports `system`, and knows nothing of data sets, Hydra or launching.
"""
