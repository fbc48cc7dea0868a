"""The environment of a session: create, watch, follow and delete one Pod and its Secret."""
