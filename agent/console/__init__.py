"""What a person or a program sees of a pipeline: live tree, lines, JSON, reports."""
