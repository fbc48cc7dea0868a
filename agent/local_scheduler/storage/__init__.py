"""What the local scheduler keeps on its disk: the SQLite tables, and the files of logs, secrets and artifacts."""
