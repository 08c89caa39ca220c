"""Load a TorchScript network of unknown origin: its code is read first and may only compute.

Reading such a file runs code: defaults of arguments and `__setstate__` are evaluated at once, and operators
of torch can read and write files. So every name in the code is checked against a list before torch sees it,
and torch is given an archive of exactly what was checked.
"""

import ast
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from meanmode.sim.store.files import first_line
from meanmode.sim.store.regular_files import open_regular

LARGEST_NETWORK, MOST_RECORDS = 2**30, 10_000
"""Bytes unpacked and records that an archive may have; the Inception network has 96 MB and about 1000."""


RECORD = re.compile(
    r"(data|constants)\.pkl|(data|constants)/\w+|code/[\w/]+\.py(\.debug_pkl)?|version|byteorder"
    r"|extra/\S*|\.format_version|\.storage_alignment|\.data/serialization_id"
)
"""Names of the records of a TorchScript archive, below its folder."""


TEXT = re.compile(rb"[\n\x20-\x7e]*")
"""Code that Python and torch read alike: printable ASCII."""


FOREIGN_ESCAPE = re.compile(rb"\\[^\\'\"nrt]")
"""An escape, or a continued line, that they may read differently; pairs of backslashes must be gone."""


GLOBALS = re.compile(
    r"__torch__(?!\.torch\.classes)[\w.]*|collections\.OrderedDict|torch\.\w+Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.jit\._pickle\.(build_(int|bool|double|tensor)list|build_tensor_from_id|restore_type_tag)"
)
"""Classes and functions that the pickles of an archive may name; torch imports none of them."""


BUILT_IN = frozenset(
    "annotate unchecked_cast uninitialized isinstance getattr hasattr range len int float bool str".split()
)
"""Functions of the language itself, which only compute."""


PRIM = frozenset("RaiseException NumToTensor dtype device shape layout data min max abs is_cuda".split())
"""Operators of the name space prim that only compute, or raise an error."""


PURE = """
    abs add sub rsub mul div true_divide floordiv floor_divide remainder fmod neg pow sqrt rsqrt square
    exp log log1p sigmoid tanh reciprocal floor ceil round trunc clamp clamp_min clamp_max minimum
    maximum erf sin cos lerp eq ne lt le gt ge __is__ __isnot__ __not__ __and__ __or__ __xor__
    __contains__ logical_and logical_or logical_not isfinite isnan where masked_fill all any Int Float
    Bool IntImplicit FloatImplicit ScalarImplicit item len append extend list copy slice format warn
    __getitem__ __range_length __derive_index insert pop reverse select index str device tensor zeros
    ones full empty arange linspace eye zeros_like ones_like full_like empty_like size dim numel stride
    is_floating_point is_complex view view_as reshape flatten unflatten squeeze unsqueeze expand
    expand_as repeat permute transpose t contiguous chunk split split_with_sizes narrow cat stack concat
    unbind flip roll pad constant_pad_nd to type_as float half double int long byte cpu detach clone
    requires_grad sum mean var std prod amax amin max min argmax argmin norm cumsum conv1d conv2d conv3d
    _convolution convolution linear matmul mm bmm addmm batch_norm layer_norm group_norm instance_norm
    relu relu6 hardtanh leaky_relu gelu silu softmax log_softmax dropout feature_dropout avg_pool1d
    avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices max_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d affine_grid_generator grid_sampler
    grid_sampler_2d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d elu threshold celu selu hardswish hardsigmoid softplus mish
    """
"""Operators of torch that only compute; more than enough for the Inception network of 2015."""


COMPUTES = frozenset(name + place for name in PURE.split() for place in ("", "_"))
"""The same, and those of them that write into their tensor."""


RESERVED = frozenset("torch ops __torch__ CONSTANTS".split())
"""Names that lead to operators and functions, and must be followed by one."""


RUNS = frozenset("fork awaitable rpc_async rpc_sync rpc_remote print".split())
"""Functions of the language that do more than to compute."""


class ForeignCodeError(ValueError):
    """The code of a TorchScript file does more than to compute."""


def load_torchscript(path: Path, device: str) -> Any:
    """Load a network once all of its code is known to compute only.

    Raises:
        ValueError: the file is not a TorchScript network, or its code may do more than to compute.
    """
    try:
        with open_regular(path) as file:
            content = _checked(file)
        with warnings.catch_warnings():
            # torch deprecates TorchScript, but networks are shared in it
            warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
            return torch.jit.load(content, map_location=device)
    except ForeignCodeError as error:
        raise ValueError(f"{path} is not loaded, as its code may do more than compute: {error}") from error
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"{path} is not a TorchScript network: {first_line(error)}") from error


def _checked(file: BinaryIO) -> io.BytesIO:
    """Write an archive of the records of another one, after a look at each.

    Raises:
        ForeignCodeError: a record may do more than to compute.
        ValueError: it is not an archive of TorchScript, or a damaged one.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(checked, "w") as copy:
        records = archive.infolist()
        if len(records) > MOST_RECORDS or sum(record.file_size for record in records) > LARGEST_NETWORK:
            raise ValueError("it is too large")
        names = [record.filename for record in records]
        folders = {name.partition("/")[0] for name in names}
        if len(folders) != 1 or len(set(names)) != len(names):
            raise ValueError("its records are not in a folder, each once")
        code = {}
        for record in records:
            content = archive.read(record)
            name = record.filename.partition("/")[2]
            if not RECORD.fullmatch(name):
                raise ValueError(f"it has the record {name!r}")
            if name.endswith(".pkl"):
                _check_pickle(content, name)
            if name.endswith(".py"):
                code[name] = content
            # positions in the code, for messages only, in a format of their own
            if not name.endswith(".debug_pkl") and not name.startswith("extra/"):
                copy.writestr(record.filename, content)
        _check_code(code)
    checked.seek(0)
    return checked


def _check_pickle(content: bytes, name: str) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ForeignCodeError(f"{name} uses {operation.name}")
        named = str(argument).replace(" ", ".")
        if operation.name == "GLOBAL" and not GLOBALS.fullmatch(named):
            raise ForeignCodeError(f"{name} names {named}")


def _check_code(code: dict[str, bytes]) -> None:
    """Check every name in the code of an archive.

    Raises:
        ForeignCodeError: a name that stands for more than a computation.
    """
    schemas = torch._C._jit_get_all_schemas()
    forbidden = {schema.name.partition("::")[2] for schema in schemas} - COMPUTES - PRIM
    for name, content in code.items():
        if not TEXT.fullmatch(content) or FOREIGN_ESCAPE.search(content.replace(b"\\\\", b"")):
            raise ForeignCodeError(f"{name} has characters that are not plain ASCII")
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ForeignCodeError(f"{name} cannot be parsed") from error
        for found in (*_statements(tree), *_names(tree, forbidden)):
            raise ForeignCodeError(f"{name} has {found}")


def _statements(tree: ast.AST) -> Iterator[str]:
    """Yield statements that run when a file is read, or that no file of torch has."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name="__setstate__" | "__getstate__" as name):
                yield f"{name}, which runs when the file is read"
            case ast.Import() | ast.ImportFrom() | ast.With() | ast.Try() | ast.Lambda() | ast.JoinedStr():
                yield type(node).__name__


def _names(tree: ast.AST, forbidden: set[str]) -> Iterator[str]:
    """Yield names that do not stand for a computation, wherever they are."""
    nodes = list(ast.walk(tree))
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assigned |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    yield from sorted(assigned & (RESERVED | RUNS | BUILT_IN))
    followed = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                if name not in COMPUTES:
                    yield f"torch.{name}"
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="ops"), attr=space), attr=name):
                if name not in (PRIM if space == "prim" else COMPUTES):
                    yield f"ops.{space}.{name}"
            case ast.Attribute(value=ast.Name(id="ops"), attr=space) if space not in ("prim", "aten"):
                yield f"ops.{space}"
            case ast.Attribute(attr=name) if name in forbidden or name == "classes":
                yield name
            case ast.Name(id=name) if name in RUNS or (name in RESERVED and id(node) not in followed):
                yield name
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=str(name))]):
                if name in forbidden or name == "classes":
                    yield name
            case ast.Call(func=ast.Name(id=name)):
                if name in ("getattr", "hasattr") or name not in BUILT_IN | assigned:
                    yield name
