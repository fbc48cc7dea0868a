"""The object store: settings become signed URLs, with which container `helper` moves files without the agent."""
