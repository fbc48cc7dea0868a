"""Programs of container `helper` that move files to and from the object store."""
