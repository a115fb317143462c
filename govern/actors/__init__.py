"""THE SHELLS: trio actors, one around each core, and the tree that holds them."""
