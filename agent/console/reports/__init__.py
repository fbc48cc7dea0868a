"""The state of a pipeline for people and for other programs: summaries, report files, findings of checks."""
