"""Columns travel whole, writable, by one copy and without keeping what they were made of."""

import dataclasses
import enum
import gc
import os
import pickle
import sys
import threading
import types
import weakref

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intune.pipelines.executors.packing import by_value, pack, unpack, unpickle
from intune.pipelines.executors.segments import ALIGNMENT, SMALLEST, Segment
from intune.pipelines.memory import roots
from intune.pipelines.schema import Ragged, slice_block


def travel(value):
    packed, lay = pack(value)
    memory = np.empty(packed.size, np.uint8)
    lay(memory)
    return unpack(packed, memory)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, Ragged):
        assert_same(one.values, other.values)
        assert_same(one.offsets, other.offsets)
    elif isinstance(one, pa.Array):
        assert one.type == other.type
        assert one.to_pylist() == other.to_pylist()
        other.validate(full=True)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.resolve_conj().numpy().tobytes() == other.numpy().tobytes()
    else:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def test_columns_that_come_apart_do_not_keep_each_other():
    value = {
        "label": np.arange(5.0),
        "wide": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "name": pa.array(["a", None, "ccc"]),
        "made": torch.arange(4, dtype=torch.float16),
        "bag": Ragged(np.arange(3), np.array([0, 1, 3])),
    }
    packed, lay = pack(value)
    memory = np.empty(packed.size, np.uint8)
    lay(memory)
    made = unpack(packed, memory, apart=True)
    memory[:] = 255
    gone = weakref.ref(memory)
    del memory
    assert gone() is None
    for name, column in value.items():
        assert_same(made[name], column)
    assert made["wide"].flags.f_contiguous
    assert roots(made["label"]) == {made["label"].ctypes.data: 40}


arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.scalar_dtypes(),
        hnp.array_dtypes(max_size=3),
        hnp.byte_string_dtypes(max_len=5),
        hnp.unicode_string_dtypes(max_len=5),
    ),
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7),
)


@given(array=arrays, order=st.permutations(range(3)), backwards=st.booleans(), frozen=st.booleans())
def test_any_array_arrives_the_same_and_writable(array, order, backwards, frozen):
    array = array.transpose([axis for axis in order if axis < array.ndim])
    array = array[::-1] if backwards else array
    if frozen:
        array.flags.writeable = False
    made = travel({"a": array})["a"]
    assert_same(array, made)
    assert made.flags.writeable
    assert made.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc


@given(
    rows=st.lists(st.one_of(st.none(), st.text(max_size=6)), max_size=40),
    type_=st.sampled_from([pa.string(), pa.large_string()]),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_slice_of_strings_arrives_the_same_and_alone(rows, type_, cut):
    whole = pa.array(rows, type_)
    part = whole.slice(*cut)
    packed, _ = pack({"s": part})
    assert_same(part, travel({"s": part})["s"])
    needed = sum(len((row or "").encode()) for row in part.to_pylist())
    # Offsets, validity, and at most seven strings before the first: validity is cut at whole bytes.
    ahead = sum(len((row or "").encode()) for row in rows[max(0, cut[0] - 7) : cut[0]])
    width = 8 if type_ == pa.large_string() else 4
    assert packed.size <= needed + ahead + (len(part) + 8) * width + len(part) + 4 * ALIGNMENT


@pytest.mark.parametrize(
    "column",
    [
        Ragged(np.arange(6.0), np.array([0, 2, 2, 6])),
        Ragged(pa.array(["a", None, "ccc"]), np.array([0, 1, 3])),
        pa.array([b"\x00", None, b"xy"], pa.binary()),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array([], pa.string()),
        torch.arange(6).reshape(2, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.empty(0, 4),
    ],
    ids=lambda column: f"{type(column).__name__}-{getattr(column, 'dtype', '')}",
)
def test_other_columns_arrive_the_same(column):
    assert_same(column, travel({"c": column})["c"])


def test_types_that_numpy_lacks_arrive_as_tensors():
    tensor = torch.randn(5, 2, dtype=torch.bfloat16)
    made = travel([tensor])[0]
    assert made.dtype is torch.bfloat16
    assert torch.equal(made, tensor)
    made += 1
    assert not torch.equal(made, tensor)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 0, 4, 5), (1, 1, 4, 5)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
def test_tensors_keep_the_order_of_their_dimensions(shape, order):
    tensor = torch.randn(shape).permute(order)
    made = travel(tensor)
    assert torch.equal(made, tensor)
    for memory in (torch.contiguous_format, torch.channels_last):
        assert made.is_contiguous(memory_format=memory) or not tensor.is_contiguous(memory_format=memory)
    # What shares memory with itself, or leaves gaps, has memory of its own.
    for view in (tensor[..., None].expand(-1, -1, -1, -1, 2), tensor[..., ::2]):
        assert torch.equal(travel(view), view)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_arrive_the_same():
    tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert [part.tolist() for part in travel(tensor).unbind()] == [[1.0] * 2, [1.0] * 3]


def test_what_is_no_column_is_pickled():
    masked = np.ma.masked_array([1, 2, 3], [True, False, True])
    odd = {"objects": np.array([1, "x", None], object), "masked": masked, "n": 3, "f": lambda x: x + 1}
    made = travel(odd)
    assert made["objects"].tolist() == [1, "x", None]
    assert made["masked"].mask.tolist() == [True, False, True]
    assert made["f"](1) == 2
    assert made["n"] == 3


def test_one_column_under_two_names_stays_one():
    column = np.arange(3)
    packed, _ = pack({"a": column, "b": column})
    assert packed.size == ALIGNMENT
    made = travel({"a": column, "b": column})
    assert made["a"] is made["b"]


def test_columns_are_not_in_the_stream():
    block = {"x": np.zeros(100_000), "s": pa.array(["y" * 50_000] * 4), "t": torch.zeros(100_000)}
    packed, _ = pack(block)
    assert len(packed.stream) < 1_000
    assert packed.size >= 100_000 * 8 + 200_000 + 100_000 * 4


def test_a_slice_leaves_the_rest_behind():
    whole = {"x": np.zeros(100_000), "s": pa.array(["y" * 10] * 100_000)}
    packed, _ = pack(slice_block(whole, 500, 600))
    assert packed.size < 4_000


def test_columns_begin_where_vector_instructions_like_it():
    segment = Segment.create()
    packed, lay = pack([np.zeros(n, np.uint8) for n in (1, 3, 65)])
    memory = segment.lend(packed.size)
    lay(memory)
    assert [array.ctypes.data % ALIGNMENT for array in unpack(packed, memory)] == [0, 0, 0]
    segment.close()


def test_packing_keeps_nothing_alive():
    """A worker must see at once that its input is free again, without the garbage collector."""
    column = np.zeros(10)
    gone = weakref.ref(column)
    gc.disable()
    try:
        result = pack({"x": column})
        assert gone() is not None
        del column, result
        assert gone() is None
    finally:
        gc.enable()


def test_a_block_counts_once_in_the_ledger():
    segment = Segment.create()
    block = {"x": np.zeros(1000), "y": np.zeros(1000, np.int32), "s": pa.array(["abc"] * 100)}
    packed, lay = pack(block)
    memory = segment.lend(packed.size)
    lay(memory)
    assert sum(roots(unpack(packed, memory)).values()) == packed.size
    segment.close()


def test_a_segment_is_free_when_the_last_view_is_gone():
    segment = Segment.create()
    view = segment.lend(1000)[10:20]
    assert not segment.free
    tensor = torch.from_numpy(view)
    del view
    assert not segment.free
    del tensor
    assert segment.free
    segment.close()


def test_a_segment_grows_and_what_was_lent_stays():
    segment = Segment.create()
    small = segment.lend(100)
    small[:] = 7
    large = segment.lend(10 * SMALLEST)
    large[:] = 1
    segment.close()
    assert small.tolist() == [1] * 100  # the same memory
    del large
    assert small.tolist() == [1] * 100


def test_two_holders_of_a_segment_see_the_same_bytes():
    one = Segment.create()
    other = Segment(os.dup(one.descriptor))
    one.lend(3 * SMALLEST)[-1] = 9
    assert other.lend(3 * SMALLEST)[-1] == 9
    one.close()
    other.close()


def test_what_cannot_be_pickled_is_refused():
    with pytest.raises(TypeError, match="cannot pickle"):
        pack({"x": np.zeros(3), "lock": threading.Lock()})
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(pickle.PicklingError, match=r"under torch\.no_grad\(\), or detach\(\) it"):
        pack([2 * weight])  # it would come as a leaf, and `weight` get no gradients
    assert travel(weight).requires_grad


def batch_class():
    class Batch:
        scale = 1

        def __init__(self, value):
            self.value = value

        def scaled(self):
            return self.value * self.scale

    return Batch


def test_a_class_that_is_here_already_stays_as_it_is():
    Batch = batch_class()
    packed, _ = pack(Batch(3))
    method, Batch.scale, Batch.more = Batch.scaled, 5, True
    made = unpack(packed, np.empty(0, np.uint8), own_classes=True)
    assert type(made) is Batch
    assert (made.scaled(), Batch.scale, Batch.more) == (15, 5, True)
    assert Batch.scaled is method
    unpack(packed, np.empty(0, np.uint8))  # as the other process has it
    assert Batch.scale == 1
    assert Batch.scaled is not method


def test_a_class_that_is_not_here_is_made_once():
    packed, _ = pack(batch_class()(3))
    gc.collect()
    made = unpack(packed, np.empty(0, np.uint8), own_classes=True)
    assert made.scaled() == 3
    type(made).scale = 2
    again = unpack(packed, np.empty(0, np.uint8), own_classes=True)
    assert type(again) is type(made)
    assert again.scaled() == 6


def test_enumerations_and_exceptions_stay_as_they_are_too():
    class Color(enum.Enum):
        RED = 1

    class Odd(Exception):
        count = 0

    packed, _ = pack([Color.RED])
    Color.note = "mine"
    assert unpack(packed, np.empty(0, np.uint8), own_classes=True)[0] is Color.RED
    assert Color.note == "mine"
    pickled = cloudpickle.dumps(Odd("text"))
    Odd.count = 4
    error = unpickle(pickled)
    assert (type(error), error.args, Odd.count) == (Odd, ("text",), 4)


def test_what_has_classes_in_it_keeps_its_memory_no_longer_than_it_lives():
    packed, _ = pack([batch_class()(3), np.zeros(10)])
    memory = np.empty(packed.size, np.uint8)
    gone = weakref.ref(memory)
    gc.disable()
    try:
        made = unpack(packed, memory, own_classes=True)
        del memory
        assert gone() is not None
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_what_the_script_of_a_spawned_process_defines_goes_by_value(monkeypatch):
    script = types.ModuleType("__mp_main__")
    exec("def f(): return g()\ndef g(): return 7", vars(script))
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    sent = by_value(script.f)
    cloudpickle.unregister_pickle_by_value(script)
    monkeypatch.delitem(sys.modules, "__mp_main__")
    assert pickle.loads(sent)() == 7


class Base:
    __slots__ = ("x",)


class Slotted(Base):
    """Of every kind of slot."""

    __slots__ = ("__hidden", "__weakref__", "y")
    z = 3

    def __init__(self, x, y):
        self.x, self.y, self.__hidden = x, y, 7

    def hidden(self):
        return self.__hidden


class OneSlot:
    __slots__ = "only"


class WithDict:
    __slots__ = {"__dict__": "", "x": "said"}


def test_a_class_with_slots_is_one_elsewhere_too(monkeypatch):
    kinds = [dataclasses.make_dataclass("Made", ["x"], slots=True, frozen=True), Slotted, OneSlot, WithDict]
    for kind in kinds[1:]:
        monkeypatch.setattr(kind, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], kind.__name__, kind, raising=False)
    monkeypatch.setattr(Base, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Base", Base, raising=False)
    stream = by_value(kinds)
    packed, lay = pack(kinds)
    memory = np.empty(packed.size, np.uint8)
    lay(memory)
    for read in (lambda: pickle.loads(stream), lambda: unpack(packed, memory)):
        with monkeypatch.context() as elsewhere:  # where none of the classes is known
            trackers = cloudpickle.cloudpickle
            elsewhere.setattr(trackers, "_DYNAMIC_CLASS_TRACKER_BY_ID", weakref.WeakValueDictionary())
            elsewhere.setattr(trackers, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", weakref.WeakKeyDictionary())
            made = read()
        assert not set(map(id, made)) & set(map(id, kinds))
        frozen, slotted, one, with_dict = made
        assert [hasattr(kind, "__dict__") for kind in (frozen(1), slotted(1, 2), one(), with_dict())] == [
            False, False, False, True,
        ]  # fmt: skip
        assert (frozen(4).x, slotted(1, 2).x, slotted(1, 2).y, slotted(1, 2).hidden(), slotted.z) == (
            4,
            1,
            2,
            7,
            3,
        )
        assert one.__slots__ == "only"
        weakref.ref(slotted(1, 2))


class Passes:
    """Passes on what it wraps, as wrappers of datasets do."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


class PassesFromSlot:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


class KeepsItems(dict):
    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("kind", [Passes, PassesFromSlot])
def test_what_passes_on_what_it_wraps_is_made_again(kind):
    value = kind(kind(3 + 4j))
    for made in (pickle.loads(by_value(value, shared=True)), travel(value)):
        assert type(made.inner) is kind
        assert made.imag == 4.0


def test_its_items_and_attributes_are_as_they_were():
    value = KeepsItems(a=1)
    value.inner = 3 + 4j
    made = pickle.loads(by_value(value))
    assert (made, vars(made), made.imag) == ({"a": 1}, {"inner": 3 + 4j}, 4.0)
    assert pickle.loads(by_value(KeepsItems(a=1))) == {"a": 1}
