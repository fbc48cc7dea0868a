"""The values that the whole agent uses: actions, events, outcomes, errors.

All are immutable data or pure functions without I/O. This package imports no other package of the agent.
"""
