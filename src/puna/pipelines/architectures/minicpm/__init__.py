"""MiniCPM 1, 2 and 4: Granite's multipliers under other names."""
