"""The protocol of SealCI 0.2: the agent registers, and the scheduler calls it for each action.

1. `connection` joins the parts. The application uses it in place of `stream.connection`.
2. `registration` registers with the scheduler, sends health, and reconnects.
3. `service` is the agent's gRPC server. Calls wait in it for a free slot, first come, first served.
4. `call` is one running call. The call takes the session's events and decodes the log for the client.
5. `file_store` keeps the files of actions in a folder, because the protocol cannot send files.

With this protocol no other agent can adopt a session, because the session ends with the call of its only client.
"""
