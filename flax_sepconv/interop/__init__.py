"""To and from other libraries: their layers, their weights, their files.

    interop.keras           Keras's files, read and written without Keras; live layers
    interop.torch           the state dict of a depthwise and a pointwise `Conv1d`
    interop.safetensors     parameters and configs in a file that every framework reads

Each is imported by itself, none with `flax_sepconv`. None of them needs another package but `to_layer` Keras and
`to_state_dict` PyTorch, to make objects of theirs.
"""
