"""Files of the studio: limits per owner."""

from foley.errors import NotFound
from foley_server.http.files import OWNERS, LruStore, Recording


def add(store: LruStore[Recording], owner: str) -> str:
    name, folder = store.allocate()
    (folder / "recording").write_bytes(b"x")
    store.add(name, Recording(folder / "recording"), owner)
    return name


def kept(store: LruStore[Recording], names: list[str]) -> list[bool]:
    found = []
    for name in names:
        try:
            found.append(store[name].path.is_file())
        except NotFound:
            found.append(False)
    return found


def test_uploads_of_one_owner_evict_only_his_own(tmp_path):
    store = LruStore[Recording](tmp_path / "recordings", "recording", 3)
    alice = [add(store, "alice") for _ in range(2)]
    bob = [add(store, "bob") for _ in range(5)]
    assert kept(store, alice) == [True, True]
    assert kept(store, bob) == [False, False, True, True, True]
    assert len(list((tmp_path / "recordings").iterdir())) == 5


def test_total_is_bounded_whatever_the_number_of_owners(tmp_path):
    store = LruStore[Recording](tmp_path / "recordings", "recording", 3)
    mine = add(store, "alice")
    for number in range(20):
        add(store, f"owner {number // 2}")
    assert len(list((tmp_path / "recordings").iterdir())) == 3 * OWNERS
    assert kept(store, [mine]) == [True]
