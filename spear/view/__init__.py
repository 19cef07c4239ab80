"""Pictures of what an encoder makes of a recording: `spear view`."""
