"""The parts of a pipeline file about several actions or attempts: matrix, needs, conditions, retries, merge keys."""
