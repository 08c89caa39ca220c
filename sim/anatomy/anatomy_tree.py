"""The anatomy of a model as a tree of text: blocks, writers, readers, streams, doubts."""

from collections.abc import Iterator

from meanmode.sim.anatomy.anatomy import Anatomy, Reader, Stream, Weight, Writer


def tree(anatomy: Anatomy) -> str:
    """All blocks with their writers and readers, line by line."""
    return "\n".join(_lines(anatomy))


def _lines(anatomy: Anatomy) -> Iterator[str]:
    for stream in anatomy.streams:
        yield _stream(stream)
    several = len(anatomy.streams) > 1
    readers: dict[int, list[Reader]] = {}
    for reader in anatomy.readers:
        readers.setdefault(reader.writer, []).append(reader)
    for block in anatomy.blocks:
        module = block.module or "(no module of its own)"
        yield f"block {block.index}  {module}{_call(block.call)}"
        for number, writer in enumerate(anatomy.writers):
            if writer.block == block.index:
                yield f"  {_writer(writer, several=several)}"
                yield from (f"    {_reader(reader, anatomy)}" for reader in readers.get(number, ()))
    yield f"{len(anatomy.writers)} writers in {len(anatomy.blocks)} blocks"
    for doubt in anatomy.unsure:
        yield f"unsure: {doubt.what}: {doubt.reason}"


def _call(call: int) -> str:
    return f" (call {call + 1})" if call else ""


def _stream(stream: Stream) -> str:
    parts = (
        " = " + " + ".join(f"{part.tokens} {part.stream}" for part in stream.parts) if stream.parts else ""
    )
    return f"stream {stream.name}: width {stream.width}, states {stream.layout}{parts}"


def _writer(writer: Writer, *, several: bool) -> str:
    words = [
        f"{writer.label or writer.kind}: {writer.parameter} {list(writer.shape)}",
        "as [in, out]" if writer.transposed else "",
        f"{writer.experts} experts" if writer.experts else "",
        "" if writer.hooked else "functional",
        f"with {len(writer.added)} more" if writer.added else "",
        f"stream {writer.stream}" if several else "",
        f"norm {writer.norms.placement}",
    ]
    return words[0] + _call(writer.call) + "".join(f", {word}" for word in words[1:] if word)


def _reader(reader: Reader, anatomy: Anatomy) -> str:
    words = [
        f"{name} {_weight(weight)}"
        for name, weight in zip("qkv", (reader.q, reader.k, reader.v), strict=True)
    ]
    if reader.heads:
        words.append(f"{reader.heads} heads of {reader.head_width}")
    if reader.kv_heads not in (0, reader.heads):
        words.append(f"{reader.kv_heads} of keys")
    if reader.qk_norm:
        words.append("QK-norm")
    if anatomy.writers[reader.writer].stream not in reader.source:
        words.append(f"keys from {', '.join(reader.source) or 'outside'}")
    return "reads " + ", ".join(words)


def _weight(weight: Weight) -> str:
    ranges = "".join(f"[{start}:{stop}]" for start, stop in weight.rows[:3])
    return f"{weight.parameter}{ranges}{'...' if len(weight.rows) > 3 else ''}"
