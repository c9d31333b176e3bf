"""What a run found, shown: one HTML page and a short table in the terminal."""
