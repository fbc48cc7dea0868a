"""Take the README's pictures from real runs."""
