"""A stand-in for a Python package index (PEP 503): what recipes pin, as tiny wheels made on demand.

    /simple/{name}/                 links to the files, each with its SHA-256
    /simple/{name}/files/{file}     the file

A wheel has the name, the version and the chain of requirements of the real one as far as that tells the story
(an engine, its torch), and a few bytes of content. An engine's wheel hands over to the node's stand-in of
that engine; it says, as the stand-in's log does, that it is simulated. Files are the same bytes each time, so
that their digests are.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

PADDING_BYTES = 200_000
"""Of a wheel that stands for a large one: enough that a slow line can be cut in the middle of it."""
_MADE_AT = (2026, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a package, as the sandbox has it."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    engine: str = ""
    """The stand-in that its program starts: `sglang` or `vllm`."""
    built_for_cuda: str = ""
    is_large: bool = False
    has_wheel: bool = True

    @property
    def file_name(self) -> str:
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        return f"{stem}-py3-none-any.whl" if self.has_wheel else f"{stem}.tar.gz"


RELEASES = (
    # Requirements as in the metadata of the real wheels, read 2026-11.
    Release("sglang", "0.5.10", ("torch==2.9.1", "transformers==5.3.0"), "sglang", "12.8"),
    Release("vllm", "0.19.1", ("torch==2.10.0", "transformers>=4.56.0"), "vllm", "12.8"),
    Release("torch", "2.9.1", is_large=True),
    Release("torch", "2.10.0", is_large=True),
    Release("transformers", "5.3.0"),
    Release("transformers", "5.5.1"),
    Release("only-source", "1.0", has_wheel=False),
)
"""The last one exists in the sandbox alone: a package that would have to be built."""


@dataclass(slots=True)
class PackageIndex:
    """What is served, and how often each file was asked for."""

    releases: tuple[Release, ...] = RELEASES
    asked: Counter[str] = field(default_factory=Counter)

    def page(self, name: str) -> str | None:
        """The HTML page of a package; None where there is no such package."""
        found = [each for each in self.releases if each.name == name]
        links = [
            f'<a href="files/{each.file_name}#sha256={hashlib.sha256(content(each)).hexdigest()}">'
            f"{each.file_name}</a><br>"
            for each in found
        ]
        return f"<!DOCTYPE html><title>{name} (simulated)</title>{''.join(links)}" if found else None

    def file(self, file_name: str) -> bytes | None:
        for each in self.releases:
            if each.file_name == file_name:
                self.asked[file_name] += 1
                return content(each)
        return None


@cache
def content(release: Release) -> bytes:
    """The bytes of a release's file: a wheel (PEP 427), or a source package that nothing can be made of."""
    if not release.has_wheel:
        return b"simulated: there is no wheel of this package\n"
    module = release.name.replace("-", "_")
    info = f"{module}-{release.version}.dist-info"
    files = {
        f"{module}/__init__.py": f'# Simulated by a sandbox.\n__version__ = "{release.version}"\n',
        f"{info}/METADATA": "".join(
            [
                f"Metadata-Version: 2.1\nName: {release.name}\nVersion: {release.version}\n",
                "Summary: simulated by clorefleet's sandbox\n",
                *(f"Requires-Dist: {each}\n" for each in release.requires),
            ]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if release.engine:
        files |= _programs(release, module, info)
    if release.is_large:
        padding = random.Random(release.file_name).randbytes(PADDING_BYTES)
        files[f"{module}/kernels.txt"] = base64.b85encode(padding).decode()
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, _MADE_AT), text)
    return buffer.getvalue()


def _programs(release: Release, module: str, info: str) -> dict[str, str]:
    """As the real engine is started: a module for SGLang, a console script for vLLM."""
    hand_over = (
        "import os\nimport sys\n\n\ndef main():\n"
        f'    os.environ["SANDBOX_BUILT_FOR_CUDA"] = "{release.built_for_cuda}"\n'
        f'    os.execvp("sandbox-{release.engine}", ["sandbox-{release.engine}", *sys.argv[1:]])\n\n\n'
        'if __name__ == "__main__":\n    main()\n'
    )
    return {
        f"{module}/launch_server.py": hand_over,
        f"{info}/entry_points.txt": f"[console_scripts]\n{release.engine} = {module}.launch_server:main\n",
    }


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
