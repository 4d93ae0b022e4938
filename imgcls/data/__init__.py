"""Data sets, augmentation, loading, and the LightningDataModule. `sharding` reads, writes and fetches images in
shards; `stores` has decoded pixels and features.

May be imported by everything above; imports `runs`, `config`, `aws`, `models`, `images` and `system` at most, and never
Hydra.
"""
