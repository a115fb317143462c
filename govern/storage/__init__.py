"""The disk: write-ahead log, snapshots, and the Storage door with its real (`files`) and simulated (`sim`) twin."""
