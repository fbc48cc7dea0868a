"""The wire of the SealCI scheduler in the field (0.2): the agent registers, and is dialed back for each action.

1. `link` joins the parts; to the application it is what `scheduler.connection` is for the stream.
2. `registration` enters the scheduler's pool and tells the health, again and again.
3. `service` is what the scheduler dials: it lets calls in, one after another as slots become free.
4. `call` is the way out of one session: bounded, decoded, and gone when its client is gone.
5. `files` keeps what that wire cannot carry in a folder.

Nobody can adopt a session here, because it ends with the call of its only client.
"""
