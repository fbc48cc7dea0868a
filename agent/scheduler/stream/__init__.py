"""The agent's end of the SealCI stream: one connection at a time, and the outbox of events that await acknowledgement.

1. `connection` registers with the scheduler and reconnects after each outage. It lives as long as the process.
2. `stream` reads and writes one gRPC stream, `channel` opens it, `credential_reload` ends it after a token change.
3. `inbox` hands the scheduler's messages to the application.
4. `outbox` and `session_outbox` keep each session's events until the scheduler has stored them.
5. `upload` sends files in a gRPC call of its own, `health` decides when the agent's health is sent.
6. `checks` is the scheduler's part of `sealci-agent doctor`.
"""
