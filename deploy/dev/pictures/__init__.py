"""Make the pictures of the README from real runs."""
