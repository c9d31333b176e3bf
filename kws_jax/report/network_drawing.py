"""The found network as a drawing, block by block, from the input to the words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kws_jax.report import operations
from kws_jax.report.chart import svg
from kws_jax.report.markup import Markup, join, tag

WIDTH = 640
_LANES = (262.0, 628.0)  # the room for operations, left to right
_TRUNK = 445.0
_TENSOR = (92.0, 1.25, 0.3)  # left edge, pixels a frame, pixels a channel
_TAP = 7.0
_LAYER_HEIGHT = 104.0
_END_HEIGHT = 66.0
_BOX = (26.0, 54.0)  # top and height of an operation's box within its layer


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One searched layer: what it does, and the size of what goes in and comes out."""

    number: int
    ops: tuple[operations.Operation, ...]
    stride: int
    channels_in: int
    channels: int
    frames: int
    shortcut: str

    @property
    def plain_shortcut(self) -> bool:
        return self.stride == 1 and self.channels_in == self.channels


def draw_network(
    genotype: Mapping[str, Any], classes: int, *, frames: int = 98, features: int = 40
) -> Markup:
    """Draws stem, searched layers and head, with the size of every activation.

    Args:
      genotype: as in genotype.json: layers, strides, channels, stem_channels, shortcut.
      classes: size of the output.
      frames: time steps of the features (98: 30 ms windows every 10 ms of one second).
      features: features a frame.

    Returns:
      An SVG with one element `data-op=NAME` per operation.
    """
    bottlenecks = any(
        operations.parse(str(name)).expansion
        for names in genotype["layers"]
        for name in names
    )
    # the network of inverted bottlenecks has a stem of stride 2
    stemmed = -(-frames // 2) if bottlenecks else frames
    layers = _layers(genotype, stemmed)
    stem = int(genotype["stem_channels"])
    kernel = "3 × 3, stride 2" if bottlenecks else "3"
    y = _END_HEIGHT + 18
    parts = [
        _header(),
        _end_row(18, "input", f"{features} features a frame", frames, features),
        _end_row(y, "stem", f"conv {kernel} → {stem} channels", stemmed, stem),
    ]
    y += _END_HEIGHT
    for layer in layers:
        parts.append(_draw_layer(layer, y))
        y += _LAYER_HEIGHT
    mean = "conv 1 × 1 → mean" if bottlenecks else "mean over time"
    head = f"{mean} → {classes} classes"
    parts.append(_end_row(y, "head", head, None, classes))
    return svg("The found network", WIDTH, y + _END_HEIGHT, parts, "chart network")


def _layers(genotype: Mapping[str, Any], frames: int) -> list[_Layer]:
    layers: list[_Layer] = []
    channels_in = int(genotype["stem_channels"])
    rows = zip(genotype["layers"], genotype["strides"], genotype["channels"])
    for number, (names, stride, channels) in enumerate(rows, start=1):
        frames = -(-frames // stride)
        shortcut = str(genotype.get("shortcut", "1x1"))
        ops = tuple(operations.parse(str(name)) for name in names)
        layers.append(
            _Layer(number, ops, stride, channels_in, channels, frames, shortcut)
        )
        channels_in = channels
    return layers


def _label(
    x: float, y: float, text: str, class_: str = "", anchor: str = "start"
) -> Markup:
    return tag("text", text, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def _wire(d: str) -> Markup:
    return tag("path", class_="wire", d=d)


def _header() -> Markup:
    return _label(_TENSOR[0], 12, "output: frames × channels", "small")


def _tensor(y: float, frames: int, channels: int) -> Markup:
    """The size of an activation: as long as its frames, as high as its channels."""
    left, per_frame, per_channel = _TENSOR
    height = max(3.0, per_channel * channels)
    box = tag(
        "rect",
        class_="tensor",
        x=left,
        y=y - height / 2,
        width=per_frame * frames,
        height=height,
    )
    return join(
        [box, _label(left, y + height / 2 + 16, f"{frames} × {channels}", "small")]
    )


def _end_row(
    y: float, name: str, description: str, frames: int | None, channels: int
) -> Markup:
    """Input, stem or head: one box on the trunk; the head has no time axis."""
    top, bottom = y + 8, y + 44
    wires = [] if name == "input" else [_wire(f"M{_TRUNK} {y}V{top}")]
    if name != "head":
        wires.append(_wire(f"M{_TRUNK} {bottom}V{y + _END_HEIGHT}"))
    size = _label(_TENSOR[0], y + 31, f"{channels} scores", "small")
    if frames is not None:
        size = _tensor(y + 22, frames, channels)
    box = tag("rect", class_="end", x=_TRUNK - 135, y=top, width=270, height=36, rx=6)
    return join(
        [
            *wires,
            box,
            _label(_TRUNK, y + 31, description, "label", "middle"),
            _label(0, y + 31, name.capitalize(), "label"),
            size,
        ]
    )


def _draw_layer(layer: _Layer, y: float) -> Markup:
    """Label, output size, and the operations side by side between fork and join."""
    left, right = _LANES
    lanes = max(1, len(layer.ops))
    lane = min((right - left) / lanes, 304.0)
    first = _TRUNK - lane * (lanes - 1) / 2
    fork, meet = y + 12, y + _LAYER_HEIGHT - 12
    parts = [
        _label(0, y + 48, f"Layer {layer.number}", "label"),
        _label(0, y + 64, f"stride {layer.stride}", "small"),
        _tensor(y + 46, layer.frames, layer.channels),
        _wire(f"M{_TRUNK} {y}V{fork}"),
        _wire(f"M{_TRUNK} {meet}V{y + _LAYER_HEIGHT}"),
    ]
    if lanes > 1:
        last = first + lane * (lanes - 1)
        parts += [
            _wire(f"M{first:.1f} {fork}H{last:.1f}"),
            _wire(f"M{first:.1f} {meet}H{last:.1f}"),
        ]
    for i, op in enumerate(layer.ops):
        parts.append(_draw_op(op, layer, first + lane * i, lane, y))
    if lanes > 1:
        parts.append(_plus(_TRUNK, meet))
    return join(parts)


def _plus(x: float, y: float) -> Markup:
    circle = tag("circle", class_="sum", cx=x, cy=y, r=8)
    cross = _wire(f"M{x - 4} {y}H{x + 4}M{x} {y - 4}V{y + 4}")
    return tag("g", tag("title", "the outputs are added"), circle, cross)


def _draw_op(
    op: operations.Operation, layer: _Layer, x: float, lane: float, y: float
) -> Markup:
    fork, meet = y + 12, y + _LAYER_HEIGHT - 12
    d = f"M{x:.1f} {fork}V{meet}"
    if op.skip:
        line = tag("path", class_="wire thin", d=d)
        told: list[object] = ["skip"]
        if lane >= 200:
            told.append(tag("tspan", ": passes on what comes in", class_="extra"))
        label = _label(x + 7, y + _LAYER_HEIGHT / 2 + 4, join(told), "small")
        return tag("g", line, label, class_="op", data_op=op.name)
    roomy = lane >= 110
    width = lane - (60 if roomy else 12)
    shortcut = None if layer.plain_shortcut or not roomy else _shortcut(op, layer)
    side = x + width / 2 + (22 if roomy else 4)
    # an inverted bottleneck has no other shortcut than its input
    alone = op.expansion and not layer.plain_shortcut
    bypass = None if alone else _bypass(shortcut, x, side, y)
    box = _op_box(op, layer, x - width / 2, y + _BOX[0], width)
    return tag("g", _wire(d), bypass, box, class_="op", data_op=op.name)


def _shortcut(op: operations.Operation, layer: _Layer) -> str:
    """The kernel of the shortcut's convolution; 'jx1' stands for the block's own."""
    return layer.shortcut.replace("j", str(op.kernel or "j")).replace("x", "×")


def _bypass(shortcut: str | None, x: float, side: float, y: float) -> Markup:
    """The line around a block, with its convolution where sizes change."""
    top, bottom = y + 18, y + _LAYER_HEIGHT - 18
    d = f"M{x:.1f} {top}H{side:.1f}V{bottom}H{x:.1f}"
    line = tag("path", class_="bypass", d=d)
    if shortcut is None:
        return line
    middle = y + _LAYER_HEIGHT / 2
    patch = tag(
        "rect", class_="patch", x=side - 16, y=middle - 10, width=32, height=20, rx=4
    )
    label = _label(side, middle + 4, shortcut, "small", "middle")
    return join([line, patch, label])


def _op_box(
    op: operations.Operation, layer: _Layer, left: float, top: float, width: float
) -> Markup:
    """Name, taps of the kernel, SE mark and steps, as far as there is room."""
    colour = op.css.split()[0]
    parts = [
        tag(
            "rect",
            class_=f"box {colour}",
            x=left,
            y=top,
            width=width,
            height=_BOX[1],
            rx=6,
        )
    ]
    if width < 60:
        middle = left + width / 2
        parts.append(_label(middle, top + 31, op.name, "tiny", "middle"))
        return join(parts)
    name = f"kernel {op.kernel}" if op.kernel and width >= 90 else op.name
    if op.expansion:
        name = f"kernel {op.kernel} × {op.kernel}, expansion {op.expansion}"
    parts.append(_label(left + 10, top + 22, name, "label"))
    if op.squeeze and width >= 90:
        parts.append(_squeeze(left + width - 40, top + 8))
    if op.kernel:
        parts.append(_taps(op.kernel, colour, left + 10, top + 35))
    if op.kernel and width >= 170 and not op.expansion:
        step = f"conv, stride {layer.stride}" if layer.stride > 1 else "conv"
        parts.append(
            _label(left + width - 10, top + 43, f"{step} → conv", "small extra", "end")
        )
    return join(parts)


def _squeeze(x: float, y: float) -> Markup:
    pill = tag("rect", class_="pill", x=x, y=y, width=30, height=18, rx=9)
    title = tag("title", "squeeze-and-excitation")
    return tag("g", title, pill, _label(x + 15, y + 13, "SE", "small", "middle"))


def _taps(kernel: int, colour: str, x: float, y: float) -> Markup:
    """As many small squares as the kernel has taps."""
    return join(
        tag(
            "rect",
            class_=f"tap {colour}",
            x=x + i * _TAP,
            y=y,
            width=5.5,
            height=8,
            rx=1,
        )
        for i in range(kernel)
    )
