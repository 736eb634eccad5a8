"""Where images come from: folders, tables, TFDS, or built in."""
