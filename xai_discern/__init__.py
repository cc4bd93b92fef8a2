"""The console command `xai-discern`."""
