import errno
import json
import multiprocessing
import os
import resource
import shutil
import stat
import threading

import pytest
import torch
from safetensors.torch import load_file

from funnelrank import durable
from funnelrank.artefact import open_artefact, understood, write_artefact
from funnelrank.durable import find_folder, new_folder, sweep
from funnelrank.errors import ArtefactError, FunnelrankError, TrainingError
from funnelrank.tensors import load_tensors, save_tensors

FILES = {"config.yaml": b"a: 1\n", "vocab/item.arrow": b"\x00\x01", "empty": b""}


@pytest.fixture
def place(tmp_path):
    write_artefact(tmp_path / "demo", FILES, {"name": "demo", "tasks": ["click"]})
    return tmp_path / "demo"


def content(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(place, change) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    change(manifest)
    (place / "manifest.json").write_text(json.dumps(manifest))


# ---- writing

def test_what_was_written_is_what_is_opened(place):
    found = open_artefact(place)
    assert found.path == place and found.about == {"name": "demo", "tasks": ["click"]}
    assert {n: (found.path / n).read_bytes() for n in FILES} == FILES
    assert found.manifest["format"] == 1 and set(found.manifest["files"]) == set(FILES)
    assert [p.name for p in place.parent.iterdir()] == ["demo"]


def test_a_function_may_write_a_file_or_a_folder(tmp_path):
    def folder(path):
        (path / "vocab").mkdir(parents=True)
        (path / "vocab" / "a.arrow").write_bytes(b"1")
    write_artefact(tmp_path / "a", {"encoder": folder, "deep/b": lambda path: path.write_bytes(b"2") and None}, {})
    assert set(open_artefact(tmp_path / "a").manifest["files"]) == {"encoder/vocab/a.arrow", "deep/b"}


def test_everybody_may_read_an_artefact_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_artefact(tmp_path / "a", FILES, {})
    finally:
        os.umask(before)
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_every_file_and_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.rename

    def flushed(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(a, b):
        rename(a, b)
        done.append("rename")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    write_artefact(tmp_path / "a", FILES, {})
    before, after = done[:done.index("rename")], done[done.index("rename") + 1:]
    names = {path.split(".tmp", 1)[1] for path in before}
    assert names == {"", "/vocab", "/config.yaml", "/vocab/item.arrow", "/empty", "/manifest.json"}
    assert after == [str(tmp_path)]


def test_an_artefact_is_replaced_whole(place):
    write_artefact(place, {"other": b"2"}, {})
    assert set(content(place)) == {"other", "manifest.json"}
    assert [p.name for p in place.parent.iterdir()] == ["demo"]


def test_sealed_files_that_are_not_ours_are_one_sentence(tmp_path):
    for error in (KeyError("vocabs"), json.JSONDecodeError("bad", "", 0), TypeError("a\nb"),
                  FileNotFoundError(2, "no")):
        with pytest.raises(ArtefactError, match="match their seals, but are not what this version") as said, \
                understood(tmp_path):
            raise error
        assert "\n" not in str(said.value)


def test_a_link_stays_a_link(place):
    link = place.parent / "latest"
    link.symlink_to("demo")
    write_artefact(link, {"other": b"2"}, {})
    assert link.is_symlink() and set(open_artefact(place).manifest["files"]) == {"other"}


def refuse(path):
    raise RuntimeError("no")


def full(path):
    with open("/dev/full", "wb") as file:
        file.write(b"0")


def test_a_failed_write_leaves_the_old_artefact_and_no_rubbish(place):
    before = content(place)
    with pytest.raises(RuntimeError, match="no"):
        write_artefact(place, {"a": b"1", "b": refuse}, {})
    with pytest.raises(TrainingError) as fault:
        write_artefact(place, {"a": b"1", "b": full}, {})
    assert str(fault.value).startswith(f"artefact {place}: the disk is full (")
    assert str(fault.value).endswith(" free); make room or choose a folder elsewhere")
    assert content(place) == before and [p.name for p in place.parent.iterdir()] == ["demo"]
    open_artefact(place)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written .*; choose a folder that can"):
        write_artefact(tmp_path / "file" / "a", FILES, {})


@pytest.mark.parametrize("make, said", [
    (lambda p: (p / "notes.txt").write_text("mine"), "also holds 'notes.txt', which would be lost"),
    (lambda p: (p / "manifest.json").unlink(), "is in the way and not replaced, because it may be something else"),
    (lambda p: (p / "manifest.json").write_text("{}"), "is in the way and not replaced")])
def test_what_is_not_ours_is_never_replaced(place, make, said):
    make(place)
    before = content(place)
    with pytest.raises(ArtefactError, match=said):
        write_artefact(place, {"a": b""}, {})
    assert content(place) == before


def test_a_file_is_never_replaced_and_an_empty_folder_is_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtefactError, match="is a file"):
        write_artefact(tmp_path / "file", FILES, {})
    (tmp_path / "empty").mkdir()
    write_artefact(tmp_path / "empty", FILES, {})
    open_artefact(tmp_path / "empty")


# ---- killed writers

CALLS = ("rename", "fsync", "mkdir", "rmdir", "unlink", "chmod", "open")


def write_until(place, calls: int) -> None:
    """Replaces the artefact in a process that is killed, with nothing cleaned up, before its n-th call."""
    left = calls

    def counted(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*args, **kwargs)
        return wrapped
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    write_artefact(place, {"new": b"new", "deep/new": b""}, {"name": "new"})
    os._exit(0)


def in_child(function, *args) -> int:
    child = os.fork()
    if child == 0:
        try:
            function(*args)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_at_every_moment_of_a_kill_one_complete_artefact_is_there(tmp_path):
    seen, calls = set(), 0
    while True:
        place = tmp_path / str(calls) / "demo"
        write_artefact(place, FILES, {"name": "old"})
        code = in_child(write_until, place, calls)
        assert code in (0, 9)
        name = open_artefact(place).about["name"]
        seen.add(name)
        assert name == "new" or "new" not in seen         # once the new one is there it stays
        write_artefact(place, {"next": b""}, {"name": "next"})
        assert open_artefact(place).about["name"] == "next"
        assert [p.name for p in place.parent.iterdir()] == ["demo"], calls      # and no rubbish stays
        if code == 0:
            break
        calls += 1
    assert seen == {"old", "new"} and calls > 15


def test_the_one_before_is_opened_after_a_kill_between_the_renames(place):
    place.rename(place.with_name(".demo.old"))
    assert open_artefact(place).path == place
    assert not place.with_name(".demo.old").exists()


def test_on_a_disk_that_may_only_be_read_the_one_before_is_read_where_it_is(place, monkeypatch):
    place.rename(place.with_name(".demo.old"))

    def refused(a, b):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(os, "rename", refused)
    assert open_artefact(place).about["name"] == "demo"


def test_only_folders_of_dead_writers_are_swept_away(tmp_path):
    (tmp_path / ".a.0123abcd.tmp").mkdir()
    (tmp_path / ".a.theirs.tmp").mkdir()        # not a name of ours
    with new_folder(tmp_path / "a") as alive:
        sweep(tmp_path, "a")
        assert alive.exists() and not (tmp_path / ".a.0123abcd.tmp").exists()
        (alive / "x").write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.theirs.tmp", "a"]


def test_a_sweep_that_waits_returns_when_the_writer_is_done(tmp_path):
    order = []
    with new_folder(tmp_path / "a"):
        waiting = threading.Thread(target=lambda: (sweep(tmp_path, "a", wait=True), order.append("swept")))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        order.append("written")
    waiting.join(10)
    assert order == ["written", "swept"] and find_folder(tmp_path / "a")


def test_without_locks_nothing_is_swept_and_everything_else_works(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "fcntl", None)
    (tmp_path / ".a.0123abcd.tmp").mkdir()
    write_artefact(tmp_path / "a", FILES, {})
    write_artefact(tmp_path / "a", FILES, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.0123abcd.tmp", "a"]


def write_often(place, name, times) -> None:
    for _ in range(times):
        write_artefact(place, {f"{name}{i}": name.encode() * 1000 for i in range(3)}, {"name": name})


def test_several_writers_of_one_artefact_leave_one_of_theirs(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path / "a", name, 15)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = open_artefact(tmp_path / "a")
    assert set(found.manifest["files"]) == {f"{found.about['name']}{i}" for i in range(3)}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- opening what was changed

def long_name(manifest):
    manifest["files"]["x" * 5000] = {"size": 0, "sha256": "0" * 64}


def name(text):
    return lambda p: edit(p, lambda m: m["files"].update({text: {"size": 1, "sha256": "0" * 64}}))


@pytest.mark.parametrize("change, said", [
    (lambda p: shutil.rmtree(p), "there is no such folder"),
    (lambda p: (p / "config.yaml").unlink(), "file 'config.yaml' is missing; the copy is not complete"),
    (lambda p: (p / "config.yaml").write_bytes(b"a"), "file 'config.yaml' has 1 bytes, manifest.json says 5"),
    (lambda p: (p / "config.yaml").write_bytes(b"a: 2\n"), "file 'config.yaml' has hash [0-9a-f]{12}"),
    (lambda p: (p / "vocab" / "b").write_bytes(b""), "file 'vocab/b' is not in manifest.json; it was added later"),
    (lambda p: ((p / "a").symlink_to("/etc/passwd")), "'a' is a link or no plain file"),
    (lambda p: ((p / "a").symlink_to("/etc")), "'a' is a link or no plain file"),
    (lambda p: ((p / "empty").unlink(), (p / "empty").symlink_to("config.yaml")), "'empty' is a link"),
    (lambda p: (shutil.move(p / "vocab", p.parent / "v"), (p / "vocab").symlink_to("../v")), "'vocab' is a link"),
    (lambda p: os.mkfifo(p / "a"), "'a' is a link or no plain file"),
    (lambda p: ((p / "empty").unlink(), os.mkfifo(p / "empty")), "'empty' is a link or no plain file"),
    (lambda p: ((p / "empty").unlink(), (p / "empty").mkdir()), "file 'empty' is missing"),
    (lambda p: (p / "manifest.json").unlink(), "has no manifest.json, so it is no artefact"),
    (lambda p: ((p / "manifest.json").unlink(), os.mkfifo(p / "manifest.json")), "has no manifest.json"),
    (lambda p: edit(p, lambda m: m.update(format=2)), "is of format 2; this version of funnelrank reads format 1"),
    (lambda p: edit(p, lambda m: m.update(format=True)), "does not say which format"),
    (lambda p: edit(p, lambda m: m.update(format="1")), "does not say which format"),
    (lambda p: edit(p, lambda m: m.pop("format")), "does not say which format"),
    (lambda p: edit(p, lambda m: m.update(kind="checkpoint")), "holds kind 'checkpoint', no artefact"),
    (lambda p: edit(p, lambda m: m.update(files=[])), "needs 'about' and 'files'"),
    (lambda p: edit(p, lambda m: m.pop("about")), "needs 'about' and 'files'"),
    (lambda p: edit(p, lambda m: m["files"].update(a=3)), "has no size and sha256 of 'a'"),
    (lambda p: edit(p, lambda m: m["files"]["empty"].update(size=-1)), "has no size and sha256 of 'empty'"),
    (lambda p: edit(p, lambda m: m["files"]["empty"].update(size=False)), "has no size and sha256 of 'empty'"),
    (lambda p: edit(p, lambda m: m["files"]["empty"].update(sha256=None)), "has no size and sha256 of 'empty'"),
    (lambda p: edit(p, long_name), "is missing"),
    (name("../outside"), "names '../outside', which is no file inside the folder"),
    (name("a/../../outside"), "which is no file inside the folder"),
    (name("/etc/passwd"), "which is no file inside the folder"),
    (name("C:\\x"), "which is no file inside the folder"),
    (name("./config.yaml"), "which is no file inside the folder"),
    (name("a//b"), "which is no file inside the folder"),
    (name(""), "which is no file inside the folder"),
    (name("a\x00b"), "which is no file inside the folder"),
    (name("\ud800"), "which is no file inside the folder"),
    (name("manifest.json"), "which is no file inside the folder")])
def test_a_changed_artefact_is_refused_with_a_sentence(place, change, said):
    change(place)
    with pytest.raises(ArtefactError, match=said) as fault:
        open_artefact(place)
    assert str(fault.value).startswith(f"artefact {place}: ")
    str(fault.value).encode()       # can be printed


@pytest.mark.parametrize("text", [
    b"", b"{", b"\xff\xfe", b"[" * 1_000_000, b'{"a":' * 100_000, b'{"format": NaN}', b'{"format": 1e999}',
    b'{"format": ' + b"1" * 10_000 + b"}", b'{"format": 1, "format": 1}', b"[]", b"null", b'"format"',
    b'{"format": -Infinity}', b"\x00" * 100])
def test_hostile_json_is_refused_with_a_sentence(place, text):
    (place / "manifest.json").write_bytes(text)
    with pytest.raises(ArtefactError, match="manifest.json"):
        open_artefact(place)


def test_any_single_byte_changed_is_noticed(place):
    for path in [p for p in place.rglob("*") if p.is_file()]:
        old = path.read_bytes()
        for at in range(0, len(old), 7):
            path.write_bytes(old[:at] + bytes([old[at] ^ 1]) + old[at + 1:])
            try:
                found = open_artefact(place)
            except FunnelrankError:
                continue
            finally:
                path.write_bytes(old)
            assert path.name == "manifest.json" and set(found.manifest["files"]) == set(FILES)   # only `about` moved


def test_a_misspelt_folder_gets_the_nearest_name(place):
    with pytest.raises(ArtefactError, match=r"there is no such folder \(did you mean 'demo'\?\)"):
        open_artefact(place.with_name("demos"))
    with pytest.raises(ArtefactError, match="there is no such folder"):
        open_artefact(place / "a" / "b" / "c")


# ---- tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4),
           "d": torch.tensor([True]), "e": torch.ones(3, dtype=torch.bfloat16),
           "f": torch.tensor([1], dtype=torch.uint8)}


def described(tensors):
    return {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}


def test_tensors_come_back_bit_by_bit(tmp_path):
    save_tensors(tmp_path / "a", TENSORS)
    loaded = load_tensors(tmp_path / "a", described(TENSORS))
    assert described(loaded) == described(TENSORS)
    assert all(torch.equal(loaded[n], TENSORS[n]) for n in TENSORS)
    assert set(load_file(tmp_path / "a")) == set(TENSORS)


def test_views_shared_memory_gradients_and_odd_layouts_are_saved(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "row": base[1], "turned": base.T, "wide": torch.ones(1).expand(5),
               "weight": torch.nn.Parameter(base), "none": torch.empty(0), "none2": torch.empty(0)}
    save_tensors(tmp_path / "a", tensors)
    loaded = load_tensors(tmp_path / "a")
    assert all(torch.equal(loaded[n], tensors[n]) for n in tensors)
    loaded["base"][0] = 9           # in memory of their own
    assert torch.equal(load_tensors(tmp_path / "a")["base"], base)


@pytest.mark.parametrize("change, said", [
    (lambda e: e.update({"a.weights": ((2, 3), torch.float32)}), r"no tensor 'a.weights' \(did you mean 'a.weight'"),
    (lambda e: e.update({"a.weight": ((3, 2), torch.float32)}),
     r"tensor 'a.weight' is float32 \[2, 3\]; the model has float32 \[3, 2\]"),
    (lambda e: e.update({"b": ((), torch.int32)}), r"tensor 'b' is int64 \[\]; the model has int32 \[\]"),
    (lambda e: e.pop("b"), "holds 'b', of which the model knows nothing")])
def test_tensors_are_held_against_the_model_before_any_is_read(tmp_path, change, said):
    save_tensors(tmp_path / "a", TENSORS)
    expected = described(TENSORS)
    change(expected)
    with pytest.raises(ArtefactError, match=said):
        load_tensors(tmp_path / "a", expected)


@pytest.mark.parametrize("content", [
    b"", b"\x00" * 8, b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
    (70).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(70) + b"123",
    (70).to_bytes(8, "little") + b'{"a":{"dtype":"XYZ","shape":[0],"data_offsets":[0,0]}}'.ljust(70)])
def test_a_damaged_tensor_file_is_refused_with_a_sentence(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArtefactError, match="not readable as safetensors"):
        load_tensors(tmp_path / "a")
    with pytest.raises(ArtefactError, match="no such file"):
        load_tensors(tmp_path / "b")


def test_a_full_disk_under_tensors_is_an_error_of_the_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as fault:
            save_tensors(tmp_path / "a", {"a": torch.zeros(1000)})
        with pytest.raises(TrainingError, match="a file may not grow so large here"):
            write_artefact(tmp_path / "b", {"a": lambda path: save_tensors(path, {"a": torch.zeros(1000)})}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fault.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
