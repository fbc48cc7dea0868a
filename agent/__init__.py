"""The SealCI agent: actions from a scheduler's stream, each run in a Kubernetes pod of its own.

1. `cli` reads the settings, `app` starts every task and ends with the last of them.
2. `scheduler.connection` registers over one stream; `scheduler.translate` turns messages into `actions`.
3. `execution.sessions` admits an action by policy and gives it a slot and a `execution.session`.
4. `execution.run` is the whole life of a session: create, follow, collect, report, clean.
5. `cluster.manifest` makes the pod and its Secret, `cluster.environment` creates, follows and deletes them.
6. `cluster.status` says what happened to a pod; the verdict comes from there alone.
7. `cluster.logs` and `cluster.files` bring bytes out; `scheduler.outbox` keeps them until acknowledged.
8. `cluster.sweep` removes what no living session owns.
"""
