"""Why a replica failed, what one flag may cure, and what a later plan has to leave out. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from clorefleet.domain.kinds import EngineName
from clorefleet.domain.offer import Offer
from clorefleet.domain.setup import Setup


class Cause(StrEnum):
    """Stable codes, shown by `--json` and kept in the store."""

    OUT_OF_VRAM = "out_of_vram"
    OUT_OF_VRAM_RUNNING = "out_of_vram_running"
    """It served, and a request needed more than was left."""
    NO_KV_MEMORY = "no_kv_memory"
    CONTEXT_TOO_LONG = "context_too_long"
    OUT_OF_RAM = "out_of_ram"
    GPU_OCCUPIED = "gpu_occupied"
    GPU_UNSUPPORTED = "gpu_unsupported"
    GPU_DEAD = "gpu_dead"
    DRIVER_TOO_OLD = "driver_too_old"
    NCCL = "nccl"
    SHM_TOO_SMALL = "shm_too_small"
    PORT_IN_USE = "port_in_use"
    DISK_FULL = "disk_full"
    BAD_PARALLELISM = "bad_parallelism"
    BAD_FLAG = "bad_flag"
    ENGINE_TOO_OLD = "engine_too_old"
    BAD_CHECKPOINT = "bad_checkpoint"
    WEIGHTS_MISSING = "weights_missing"
    INDEX_UNREACHABLE = "index_unreachable"
    """The package index does not answer the server."""
    PACKAGE_NOT_FOUND = "package_not_found"
    """The index has no such version of a package."""
    BUILD_NEEDED = "build_needed"
    """The index has the version, and no wheel of it for this server's Python."""
    BAD_PACKAGE = "bad_package"
    """A wheel arrived twice with bytes that are not the index's."""
    INSTALL_FAILED = "install_failed"
    UNAUTHORISED = "unauthorised"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    SLOW_DOWNLOAD = "slow_download"
    LOCAL_WEIGHTS = "local_weights"
    """The files on this machine are gone, changed or unreadable: no server's fault."""
    UPLOAD_BROKE = "upload_broke"
    """Weights from this machine did not arrive; its own line may be as much to blame as the server's."""
    TOOL_CALLS_DROPPED = "tool_calls_dropped"
    NO_THINKING = "no_thinking"
    WRONG_ANSWERS = "wrong_answers"
    TOO_SLOW = "too_slow"
    TOOK_TOO_LONG = "took_too_long"
    NOT_AS_OFFERED = "not_as_offered"
    SUPERSEDED = "superseded"
    """Nothing is wrong: of two servers for one replica the other was ready first."""
    OUTBID = "outbid"
    """Nothing is wrong: another renter has the spot server now."""
    NO_KEY_HERE = "no_key_here"
    """Nothing is wrong with the server: the key that opens it is on another machine, or gone."""
    UNPROVEN = "unproven"
    """Whose its order is, nothing here can tell: no key here opened its server."""
    UNKNOWN = "unknown"


class Correction(StrEnum):
    """One change to a launch that may cure a cause. Each is tried at most once on a lease."""

    LOWER_MEMORY_FRACTION = "lower_memory_fraction"
    HIGHER_MEMORY_FRACTION = "higher_memory_fraction"
    SHORTER_CONTEXT = "shorter_context"
    """With prefill in small chunks; never below what was asked for."""
    MORE_EXPERTS_IN_RAM = "more_experts_in_ram"
    NO_PEER_TO_PEER = "no_peer_to_peer"
    OTHER_PORT = "other_port"
    FETCH_AGAIN = "fetch_again"
    """All files are compared with their digests once more, and those that are damaged are fetched anew."""


HOST_IS_TO_BLAME = frozenset(
    {
        Cause.GPU_OCCUPIED,
        Cause.GPU_DEAD,
        Cause.NCCL,
        Cause.SHM_TOO_SMALL,
        Cause.DISK_FULL,
        Cause.OUT_OF_RAM,
        Cause.WRONG_ANSWERS,
        Cause.TOO_SLOW,
        Cause.TOOK_TOO_LONG,
        Cause.SLOW_DOWNLOAD,
        Cause.NOT_AS_OFFERED,
        Cause.WEIGHTS_MISSING,
        Cause.INDEX_UNREACHABLE,
        Cause.BAD_PACKAGE,
        Cause.INSTALL_FAILED,
        Cause.UNKNOWN,
    }
)
"""Causes after which later plans leave the server out, whatever they would run on it."""
NOBODY_FAILED = frozenset({Cause.SUPERSEDED, Cause.OUTBID, Cause.NO_KEY_HERE, Cause.UNPROVEN})
"""Neither a failure nor an attempt that counts."""
NO_RETRY_HELPS = frozenset(
    {
        Cause.DRIVER_TOO_OLD,
        Cause.GPU_UNSUPPORTED,
        Cause.ENGINE_TOO_OLD,
        Cause.BAD_FLAG,
        Cause.BAD_PARALLELISM,
        # A launch is cured by fetching again; one that follows reads the very same bytes.
        Cause.BAD_CHECKPOINT,
        Cause.LOCAL_WEIGHTS,
        Cause.SHM_TOO_SMALL,
        Cause.DISK_FULL,
        Cause.PACKAGE_NOT_FOUND,
        Cause.BUILD_NEEDED,
        Cause.BAD_PACKAGE,
        Cause.UNAUTHORISED,
        Cause.NOT_FOUND,
        Cause.OUT_OF_VRAM,
        Cause.NO_KV_MEMORY,
        Cause.CONTEXT_TOO_LONG,
        Cause.OUT_OF_RAM,
        Cause.TOOL_CALLS_DROPPED,
        Cause.NO_THINKING,
    }
)
"""The same launch would end the same way: paying for another try buys nothing."""


_OF_THE_IMAGE = frozenset({Cause.ENGINE_TOO_OLD, Cause.BAD_FLAG, Cause.TOOL_CALLS_DROPPED, Cause.NO_THINKING})


def blames_host(cause: Cause, setup: Setup) -> bool:
    """Whether the server is to be left out of later plans.

    An image under a tag that moves (`latest`, `server-cuda`) may be an old one on this host alone.
    """
    return cause in HOST_IS_TO_BLAME or (cause in _OF_THE_IMAGE and not _is_pinned(setup.image))


def _is_pinned(image: str) -> bool:
    _, _, tag = image.rpartition("/")[2].partition(":")
    return "@sha256:" in image or any(letter.isdigit() for letter in tag)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What later plans leave out. Fields that are set must all match; the others say nothing."""

    reason: str
    engine: EngineName | None = None
    checkpoint: str = ""
    image: str = ""
    gpus: str = ""
    """As `Offer.gpu_summary` says it."""
    cuda_at_most: tuple[int, int] | None = None
    """Servers whose driver supports no more than this, or does not tell."""

    def matches(self, offer: Offer, setup: Setup) -> bool:
        has_old_driver = (
            self.cuda_at_most is None or offer.cuda_version is None or offer.cuda_version <= self.cuda_at_most
        )
        return (
            has_old_driver
            and self.engine in (None, setup.engine)
            and self.checkpoint in ("", setup.checkpoint)
            and self.image in ("", setup.image)
            and self.gpus in ("", offer.gpu_summary)
        )


def exclusion_of(
    cause: Cause, offer: Offer, setup: Setup, *, cuda_found: tuple[int, int] | None = None
) -> Exclusion | None:
    """What a failure tells about other servers; None where it tells of its own server alone."""
    match cause:
        case Cause.DRIVER_TOO_OLD:
            cuda = cuda_found or offer.cuda_version
            told = "an unknown CUDA version" if cuda is None else f"CUDA {cuda[0]}.{cuda[1]}"
            return Exclusion(
                f"{setup.image} needs a newer driver than one for {told}",
                image=setup.image,
                cuda_at_most=cuda or (0, 0),
            )
        case Cause.GPU_UNSUPPORTED:
            return Exclusion(
                f"{setup.image} was not built for {offer.gpu_summary}",
                image=setup.image,
                gpus=offer.gpu_summary,
            )
        case (
            Cause.OUT_OF_VRAM
            | Cause.OUT_OF_VRAM_RUNNING
            | Cause.NO_KV_MEMORY
            | Cause.CONTEXT_TOO_LONG
            | Cause.BAD_PARALLELISM
        ):
            return Exclusion(
                f"{setup.checkpoint} in {setup.engine} did not fit on {offer.gpu_summary}",
                engine=setup.engine,
                checkpoint=setup.checkpoint,
                gpus=offer.gpu_summary,
            )
        case Cause.PACKAGE_NOT_FOUND | Cause.BUILD_NEEDED:
            return Exclusion(
                f"the packages of {setup.engine} cannot be installed on {setup.image}",
                engine=setup.engine,
                image=setup.image,
            )
        case _ if cause in _OF_THE_IMAGE:
            if not _is_pinned(setup.image):
                return None
            return Exclusion(
                f"{setup.image} cannot serve {setup.model}", engine=setup.engine, image=setup.image
            )
        case Cause.BAD_CHECKPOINT | Cause.UNAUTHORISED | Cause.NOT_FOUND | Cause.LOCAL_WEIGHTS:
            return Exclusion(f"{setup.checkpoint} cannot be had or loaded", checkpoint=setup.checkpoint)
        case _:
            return None
