"""A scheduler for one machine, used by `sealci-agent run` and `sealci-agent scheduler`.

It stores pipelines in SQLite and sends their actions to agents over the same stream as any other SealCI scheduler.
"""
