"""Programs for developers of the agent: a cluster, the generated parts of the chart, the pictures of the README."""
