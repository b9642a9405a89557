"""Measured leases are read without touching the store, and a store that cannot be read costs no plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clorefleet.store.database import Store
from clorefleet.store.measured import measured_leases
from tests.fleet import builders


def test_only_leases_with_a_measurement_are_read(file_store: Store, store_url: str):
    measured = builders.lease(measured_tokens_per_s=8.5)
    with file_store.write() as tx:
        tx.put_lease(measured)
        tx.put_lease(builders.lease(lease_id="other"))
    assert measured_leases(store_url) == (measured,)


def test_no_store_or_a_broken_one_is_no_measurement_and_makes_no_file(tmp_path: Path):
    missing = tmp_path / "none.db"
    assert measured_leases(f"sqlite:///{missing}") == () and not missing.exists()
    missing.write_bytes(b"not a database, " * 100)
    assert measured_leases(f"sqlite:///{missing}") == ()


def test_an_empty_store_costs_no_heavy_import(file_store: Store, store_url: str):
    code = (
        "import sys; from clorefleet.store.measured import measured_leases; "
        f"measured_leases({store_url!r}); "
        "print(sorted({'sqlmodel', 'sqlalchemy', 'pydantic'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
