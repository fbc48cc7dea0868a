"""A scheduler for one machine.

It stores pipelines in SQLite and hands their actions to agents over the SealCI stream.
"""
