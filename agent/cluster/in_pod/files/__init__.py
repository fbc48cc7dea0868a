"""The programs of container `helper` that move files: artifacts out, a working tree and inputs in."""
