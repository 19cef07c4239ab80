"""Features of recordings on disk: `spear embed-files`."""
