"""The protocol of SealCI 0.2: the agent registers, and the scheduler calls the agent for each action.

1. `connection` combines the other modules. The application uses it in place of `stream.connection`.
2. `registration` registers with the scheduler, sends health, and reconnects.
3. `service` is the agent's gRPC server. If no slot is free, a call waits there, first come, first served.
4. `call` is one running call. It turns the session's events into responses for the scheduler.
5. `file_store` keeps the files of actions in a folder, because the protocol cannot send files.

With this protocol no other agent can adopt a session, because a session ends with the scheduler's call.
"""
