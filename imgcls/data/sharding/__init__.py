"""Images in shards, tar or Parquet files of many images each: written, indexed, listed, and fetched in turn.

`data.shards` makes a data set of them. May be imported by `data.stores`, `data.shards` and everything above them;
imports `data`, `aws`, `images` and `system`, never `data.stores`.
"""
