"""Seeded damage to files of any format, and pickles that try to run code."""

import random
import struct

NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutated(data, seed, protected=0):
    """`data` with one to three faults; the first `protected` bytes stay, so that the magic is right."""
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(protected, max(protected + 1, len(out)))
        kind = chance.choice(("bit", "byte", "number", "cut", "insert", "truncate", "swap"))
        if kind == "bit" and place < len(out):
            out[place] ^= 1 << chance.randrange(8)
        elif kind == "byte" and place < len(out):
            out[place] = chance.randrange(256)
        elif kind == "number":
            text = struct.pack(chance.choice(("<Q", ">Q")), chance.choice(NUMBERS))
            size = chance.choice((1, 2, 4, 8))
            out[place : place + size] = text[:size]
        elif kind == "cut":
            del out[place : place + chance.randint(1, 16)]
        elif kind == "insert":
            out[place:place] = chance.randbytes(chance.randint(1, 16))
        elif kind == "truncate":
            del out[place:]
        else:
            other = chance.randrange(protected, max(protected + 1, len(out)))
            size = chance.randint(1, 12)
            out[place : place + size], out[other : other + size] = (
                out[other : other + size],
                out[place : place + size],
            )
    return bytes(out)


def hostile_pickles(marker):
    """Pickles that would create the file `marker`, or reach for what could, by each opcode that calls."""
    command = f"touch {marker}".encode()
    text = struct.pack("<B", len(command)) + command
    short = b"\x8c" + text  # SHORT_BINUNICODE
    return {
        "GLOBAL REDUCE": b"cos\nsystem\n(S'" + command + b"'\ntR.",
        "STACK_GLOBAL REDUCE": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + short + b"\x85R.",
        "INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command + b"'\no.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(" + short + b"\x88t\x81.",
        "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n(" + short + b"t}\x92.",
        "eval": b"cbuiltins\neval\n(S'open(\"" + str(marker).encode() + b'","w")\'\ntR.',
        "exec by getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(" + short + b"tR.",
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0aos.system.x\x93" + short + b"\x85R.",
        "through torch": b"ctorch\nload\n(" + short + b"tR.",
        "through torch.serialization": b"ctorch.serialization\nload\n(" + short + b"tR.",
        "through torch.hub": b"ctorch.hub\nload\n(" + short + b"tR.",
        "runpy": b"crunpy\nrun_path\n(" + short + b"tR.",
        "numpy load": b"cnumpy\nload\n(" + short + b"tR.",
        "BUILD": b"cpathlib\nPosixPath\n(S'x'\ntR(dS'__class__'\ncos\nsystem\nsb.",
        "EXT": b"\x80\x02\x82\x01.",
        "persistent id": b"Pxyz\n.",
        "BINPERSID": b"\x80\x02" + short + b"Q.",
    }
