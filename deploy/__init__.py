"""What installs and builds the agent, and in `dev` what its developers run. Never part of the installed agent."""
