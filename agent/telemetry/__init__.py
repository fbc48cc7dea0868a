"""What the agent reports about itself: metrics, traces and its own log."""
