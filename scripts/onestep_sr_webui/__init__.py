"""The Automatic1111 and Forge adapter: an upscaler, a section in Extras and settings, each a call into the core."""
