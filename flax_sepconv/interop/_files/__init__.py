"""Keras's files, from their bytes to the layers of a model with their weights, and back.

    byte_source      the bytes of a file by position; regions: which of them are taken, and by what
       │
    archive          the zip archive that a `.keras` file is
    hdf5             groups, attributes and arrays (hdf5_messages, hdf5_objects, hdf5_text, hdf5_regions)
    container        what a file of any kind holds: a config and weights
    saved_model      a SavedModel folder (wire: protocol buffers and tables)
       │
    description      the model's config (untrusted_json) as a tree of layers; given_config: one that the caller gives
       │
    pairing          where the weights of each `SeparableConv1D` are (pairing_archive, pairing_hdf5)
    placing          where the arrays of every layer are
       │
    model_file       a file of any kind, opened: all of the above
    separable_layers its `SeparableConv1D` layers, and what is to be said of the rest
    rewrite          a copy of it with other weights (atomic: written whole or not at all)

Files are untrusted: each reader counts what it does in the one `budget` of its `reading`, and runs nothing.
"""
