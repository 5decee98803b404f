"""Processing: from texts, pictures and dialogues to packed tensors.

This package imports neither transformers nor the model, so that loader workers and tagging can afford it:
`processor` needs numpy, Pillow and tokenizers, `packing` torch.
"""
