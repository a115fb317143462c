"""THE RULES: plain synchronous Python, events in, effects out. No trio, time, random, os or socket here."""
