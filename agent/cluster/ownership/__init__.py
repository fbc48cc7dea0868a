"""Which agent owns which pod: Leases, adoption after an agent's death, and removal of orphans."""
