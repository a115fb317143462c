"""The network: frames, and the Network door with its real (`tcp`) and simulated (`sim`) twin."""
