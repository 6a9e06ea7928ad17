"""Pages that people read in a browser: one file each, complete in itself, which asks no network for anything."""
