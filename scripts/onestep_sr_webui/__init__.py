"""The Automatic1111 and Forge adapter: upscalers, a section in Extras, and settings."""
