"""Where training computes: devices and their memory, several processes, compilation, exact arithmetic."""
