"""What people and programs see of a pipeline: a live tree, lines, JSON and report files."""
