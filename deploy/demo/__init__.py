"""Install the chart on a real cluster and build a published Python package in pods: `python3 -m deploy.demo`."""
