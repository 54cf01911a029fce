"""Makes the files of Keras byte by byte, with a lie in one of their fields: `fuzz` for what random damage never hits.

    Maker(rng).keras()   Maker(rng).h5()   Maker(rng).saved_model()      sound files of a few layers
    Maker(rng, lies={17})                                                the same, with another number as the 18th

A lie is a number that matters elsewhere in the file (a position, a size), or one at a limit. Structures may stand in
for each other as well: `shares` gives a position that was given before in place of a new one.
"""

import json
import math
import struct
import zlib

LIMITS = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    24,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**63,
    2**64 - 1,
]
FLOAT32 = (0, 32, 23, 8, 0, 23, 127)


class Maker:
    """Writes one file.

    Args:
        rng: decides what the file holds and which lies it tells.
        lies: which of the numbers are lies, by their order.
        shares: how probable it is that a structure is one that is there already.
        layers: how many layers there are.
    """

    def __init__(self, rng, lies=(), shares=0.0, layers=2):
        self.rng, self.lies, self.shares, self.layers = rng, lies, shares, layers
        self.count, self.data, self.places, self.sizes = 0, bytearray(), [], []

    # ---- Numbers, any of which may be a lie ----

    def number(self, value, size):
        """An integer of `size` bytes; of a varint where that is 0."""
        if self.count in self.lies:
            near = [value - 1, value + 1, 2 * value, value ^ 1 << self.rng.randrange(64)]
            value = self.rng.choice([*LIMITS, *near, *self.places, *self.sizes[-20:]])
        self.count += 1
        self.sizes.append(value)
        return value % 2 ** (8 * size) if size else value % 2**64

    def pack(self, form, *values):
        """`struct.pack` of integers."""
        sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
        return b"".join(
            self.number(value, sizes[kind]).to_bytes(sizes[kind], "little")
            for kind, value in zip(form, values, strict=True)
        )

    def varint(self, value):
        value, out = self.number(value, 0), bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def field(self, number, value):
        """A field of a protocol buffer."""
        if isinstance(value, int):
            return self.varint(number << 3) + self.varint(value)
        return self.varint(number << 3 | 2) + self.varint(len(value)) + value

    # ---- HDF5 ----

    def put(self, data):
        """The position of a structure."""
        if self.places and self.rng.random() < self.shares:
            return self.rng.choice(self.places)
        self.data += bytes(-len(self.data) % 8)
        self.places.append(len(self.data))
        self.data += data
        return self.places[-1]

    def message(self, kind, body):
        body += bytes(-len(body) % 8)
        return self.pack("HHBBH", kind, len(body), 0, 0, 0) + body

    def header(self, *messages):
        block = b"".join(messages)
        return self.put(self.pack("BBHIII", 1, 0, len(messages), 1, len(block), 0) + block)

    def space(self, shape):
        return self.pack("BBBBI", 1, len(shape), 0, 0, 0) + self.pack("Q" * len(shape), *shape)

    def group(self, children, *messages):
        heap, entries = bytearray(8), b""
        for name, address in sorted(children.items()):
            entries += self.pack("QQIIQQ", len(heap), address, 0, 0, 0, 0)
            heap += name.encode() + b"\0"
            heap += bytes(-len(heap) % 8)
        names = self.put(heap)
        heap_at = self.put(b"HEAP" + self.pack("IQQQ", 0, len(heap), 1, names))
        node = self.put((b"SNOD" + self.pack("BBH", 1, 0, len(children)) + entries).ljust(328, b"\0"))
        tree = b"TREE" + self.pack("BBHQQQQQ", 0, 0, 1, 2**64 - 1, 2**64 - 1, 0, node, len(heap))
        table = self.message(0x11, self.pack("QQ", self.put(tree.ljust(544, b"\0")), heap_at))
        return self.header(table, *messages)

    def dataset(self, *shape):
        size = 4 * math.prod(shape)
        kind = self.pack("BBBBI", 0x11, 0x20, 31, 0, 4) + self.pack("HHBBBBI", *FLOAT32)
        at = self.put(self.rng.randbytes(size))
        layout = self.pack("BBQQ", 3, 1, at, size)
        return self.header(self.message(1, self.space(shape)), self.message(3, kind), self.message(8, layout))

    def attribute(self, name, items):
        """A list of strings of one length, or a string in a heap."""
        if isinstance(items, str):
            text = items.encode()
            objects = self.pack("HHIQ", 1, 1, 0, len(text)) + text + bytes(-len(text) % 8 + 16)
            at = self.put(b"GCOL" + self.pack("BBHQ", 1, 0, 0, 16 + len(objects)) + objects)
            kind = self.pack("BBBBI", 0x19, 1, 0, 0, 16) + self.pack("BBBBI", 0x10, 0, 0, 0, 1)
            space, data = self.space(()), self.pack("IQI", len(text), at, 1)
        else:
            length = max(map(len, items)) + 1
            kind = self.pack("BBBBI", 0x13, 0, 0, 0, length)
            space, data = self.space((len(items),)), b"".join(i.encode().ljust(length, b"\0") for i in items)
        named = name.encode() + b"\0"
        sizes = self.pack("BBHHH", 1, 0, len(named), len(kind), len(space))
        return self.message(
            0x0C, sizes + b"".join(each + bytes(-len(each) % 8) for each in (named, kind, space)) + data
        )

    def hdf5(self, make_root):
        self.data, self.places = bytearray(96), []
        root = make_root()
        head = (
            b"\x89HDF\r\n\x1a\n" + self.pack("BBBBBBBB", 0, 0, 0, 0, 0, 8, 8, 0) + self.pack("HHI", 4, 16, 0)
        )
        head += self.pack("QQQQQQ", 0, 2**64 - 1, len(self.data), 2**64 - 1, 0, root)
        self.data[: len(head)] = head
        return bytes(self.data)

    # ---- What Keras writes ----

    def entry(self, i):
        config = {
            "name": f"s{i}",
            "filters": 2,
            "kernel_size": [3],
            "use_bias": i % 2 == 0,
            "trainable": i != 1,
        }
        return {"class_name": "SeparableConv1D", "config": config}

    def config(self):
        layers = [self.entry(i) for i in range(self.layers)]
        if self.rng.random() < 0.3:  # names of the config that are none of the file
            return {
                "class_name": "Own",
                "config": {"inner": {f"k{i}": each for i, each in enumerate(layers)}},
            }
        return {"class_name": "Sequential", "config": {"name": "m", "layers": layers}}

    def arrays(self, i):
        return [self.dataset(3, 2, 1), self.dataset(1, 2, 2), *([self.dataset(2)] if i % 2 == 0 else [])]

    def named_weights(self, *attributes):
        """The root of weights by the layers' names."""
        groups = {}
        for i in range(self.layers):
            leaves = ("depthwise_kernel:0", "pointwise_kernel:0", "bias:0")
            arrays = dict(zip(leaves, self.arrays(i), strict=False))
            names = self.attribute("weight_names", [f"s{i}/{leaf}" for leaf in arrays])
            groups[f"s{i}"] = self.group({f"s{i}": self.group(arrays)}, names)
        return self.group(groups, self.attribute("layer_names", [*groups]), *attributes)

    def numbered_weights(self):
        """The root of weights in Keras's own format."""
        groups = {}
        for i in range(self.layers):
            arrays = {str(j): at for j, at in enumerate(self.arrays(i))}
            named = [self.attribute("name", f"s{i}")] if self.rng.random() < 0.7 else []
            groups[f"separable_conv1d{f'_{i}' * (i > 0)}"] = self.group({"vars": self.group(arrays, *named)})
        return self.group({"layers": self.group(groups)})

    def texts(self):
        texts = {"metadata.json": {"keras_version": "3.3.3"}, "config.json": self.config()}
        return {name: json.dumps(value).encode() for name, value in texts.items()}

    def h5(self):
        def root():
            texts = {"keras_version": "2.15.0", "model_config": json.dumps(self.config())}
            attributes = [self.attribute(*each) for each in texts.items()]
            return self.group({"model_weights": self.named_weights()}, *attributes)

        return self.hdf5(root)

    def alone(self):
        """Weights alone and the config for them."""
        numbered = self.rng.random() < 0.5
        version = lambda: self.attribute("keras_version", "2.15.0")  # noqa: E731
        root = self.numbered_weights if numbered else lambda: self.named_weights(version())
        return self.hdf5(root), json.dumps(self.config()).encode()

    def folder(self):
        """The files of a folder of Keras 3's by name."""
        return self.texts() | {"model.weights.h5": self.hdf5(self.numbered_weights)}

    def keras(self):
        out, directory = b"", b""
        members = self.folder()
        for name, data in members.items():
            at, size, crc, raw = len(out), len(data), zlib.crc32(data), name.encode()
            same = (20, 0, 0, 0, 33, crc, size, size, len(raw), 0)
            out += b"PK\3\4" + self.pack("HHHHHIIIHH", *same) + raw + data
            directory += b"PK\1\2" + self.pack("HHHHHHIIIHHHHHII", 20, *same, 0, 0, 0, 0, at) + raw
        end = self.pack("HHHHIIH", 0, 0, len(members), len(members), len(directory), len(out), 0)
        return out + directory + b"PK\5\6" + end

    def saved_model(self):
        """The files of a folder by name."""
        leaves = [b"depthwise_kernel", b"pointwise_kernel", b"bias"]
        shapes = [(3, 2, 1), (1, 2, 2), (2,)]
        nodes, graph, table, shard = b"", [b""], {b"": self.field(1, 1)}, b""
        for i in range(self.layers):
            nodes += self.field(
                1, self.field(3, f"root.l{i}".encode()) + self.field(5, json.dumps(self.entry(i)).encode())
            )
            graph[0] += self.field(1, self.field(1, len(graph)) + self.field(2, f"l{i}".encode()))
            links, keys = b"", []
            for j, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)):
                links += self.field(1, self.field(1, len(graph) + 1 + j) + self.field(2, leaf))
                keys.append(f"l{i}/{j}".encode())
                size = 4 * math.prod(shape)
                dims = b"".join(self.field(2, self.field(1, each)) for each in shape)
                table[keys[-1]] = (
                    self.field(1, 1) + self.field(2, dims) + self.field(4, len(shard)) + self.field(5, size)
                )
                shard += self.rng.randbytes(size)
            graph += [links, *(self.field(2, self.field(3, key)) for key in keys)]
        text = b"".join(self.field(1, node) for node in graph)
        text = self.varint(len(text)) + bytes(4) + text
        table[b"_CHECKPOINTABLE_OBJECT_GRAPH"] = self.field(4, len(shard)) + self.field(5, len(text))
        data = self.block(sorted(table.items()))
        index = self.block([(b"\xff", self.varint(0) + self.varint(len(data) - 1))])
        foot = (bytes(2) + self.varint(len(data)) + self.varint(len(index) - 1)).ljust(40, b"\0")
        return {
            "saved_model.pb": b"",
            "keras_metadata.pb": nodes,
            "variables/variables.index": data + index + foot[:40] + struct.pack("<Q", 0xDB4775248B80FB57),
            "variables/variables.data-00000-of-00001": shard + text,
        }

    def block(self, entries):
        packed = (self.varint(0) + self.varint(len(k)) + self.varint(len(v)) + k + v for k, v in entries)
        return b"".join(packed) + self.pack("II", 0, 1) + b"\0"


def case(rng, folder):
    """Writes a file with a lie or two, and returns its path."""
    kind = rng.choice(["keras", "keras", "h5", "h5", "saved_model", "alone", "folder"])
    seed, layers = rng.random(), rng.choice([1, 2, 2, 3, 30])
    sound = Maker(type(rng)(seed), layers=layers)
    getattr(sound, kind)()
    lies = {rng.randrange(sound.count) for _ in range(rng.choice([0, 1, 1, 1, 2, 5]))}
    shares = rng.choice([0, 0, 0, 0.02, 0.2])
    made = getattr(Maker(type(rng)(seed), lies, shares, layers), kind)()
    target = folder / f"built.{kind}"
    target.with_name(f"{target.name}.json").unlink(missing_ok=True)
    if isinstance(made, tuple):
        made, config = made
        target.with_name(f"{target.name}.json").write_bytes(config)
    if isinstance(made, bytes):
        target.write_bytes(made)
        return target
    for name, data in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target
