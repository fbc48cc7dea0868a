"""Pure functions between the services of an action and its pod: their containers, and what their statuses mean."""
