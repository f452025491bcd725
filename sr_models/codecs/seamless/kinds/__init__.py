"""Each naming scheme of autoencoders: `fits` recognises it, `encoder` and `decoder` describe its layers.

Nothing is imported from a host, and a wrapped module (PEFT's `base_layer`) is treated as the module that it wraps.
"""
