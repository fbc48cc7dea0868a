"""Names of images, repositories and Secrets that a scheduler may ask for, and their comparison with patterns."""
