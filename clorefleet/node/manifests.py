"""Which files each lease's weights consist of, kept on this machine for as long as the lease lives.

The hub is asked once in a lease's life, so that a restart of ours and a moving branch of theirs change
nothing between download and launch. What a node says is never taken for a list of files.
"""

from __future__ import annotations

import logging
from pathlib import Path

from clorefleet.config.places import make_private_dir, write_private_file
from clorefleet.domain.errors import WeightsFailed
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease
from clorefleet.domain.secret import HubAccess
from clorefleet.node import push, weights
from clorefleet.node.weights import Manifest

log = logging.getLogger("clorefleet.node")


class Manifests:
    def __init__(self, folder: Path, *, hub_url: str, hub_access: HubAccess) -> None:
        self._folder, self._hub_url, self._hub_access = folder, hub_url, hub_access
        self._kept: dict[LeaseId, Manifest] = {}

    def of(self, lease: Lease) -> Manifest:
        """
        Raises:
            WeightsFailed: the hub does not tell, or weights of this machine were not sent yet.
        """
        known = self.known(lease.lease_id)
        if known is None:
            known = self._fetch(lease)
            self.keep(lease.lease_id, known)
        return known

    def known(self, lease_id: LeaseId) -> Manifest | None:
        """Without asking the hub."""
        if lease_id not in self._kept:
            loaded = self._load(lease_id)
            if loaded is None:
                return None
            self._kept[lease_id] = loaded
        return self._kept[lease_id]

    def keep(self, lease_id: LeaseId, manifest: Manifest) -> None:
        make_private_dir(self._folder)
        write_private_file(self._file(lease_id), manifest.to_json())
        self._kept[lease_id] = manifest

    def forget(self, lease_id: LeaseId) -> None:
        self._kept.pop(lease_id, None)
        self._file(lease_id).unlink(missing_ok=True)

    def _fetch(self, lease: Lease) -> Manifest:
        setup = lease.plan.setup
        if push.is_local(setup.repo):
            raise WeightsFailed("The weights on this machine were not sent yet.", cause="not_found")
        return weights.fetch_manifest(self._hub_url, setup, self._hub_access.token_for(setup.repo))

    def _load(self, lease_id: LeaseId) -> Manifest | None:
        try:
            return Manifest.from_json(self._file(lease_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            log.warning("manifest_unreadable lease=%s", lease_id)
            return None

    def _file(self, lease_id: LeaseId) -> Path:
        return self._folder / f"{lease_id}.json"
