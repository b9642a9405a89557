#!/usr/bin/env python3
"""Time this machine for some seconds: memory, disk, line, GPUs. Prints one line of JSON.

Sent to a rented server and run there; needs Python 3.8 and nothing else. GPUs are measured only where the
image has torch.

    measure.py FOLDER [SAMPLE]

FOLDER is where the weights will go. SAMPLE is a file below the hub's address (HF_ENDPOINT), as
`org/name/resolve/COMMIT/PATH`; it is read by ranges, and never to its end.
"""

import contextlib
import json
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

MEMORY_S = 0.6
MEMORY_BLOCK_BYTES = 64 << 20
MEMORY_WORKERS_MAX = 32
MEMORY_SHARE_MAX = 0.25
DISK_BYTES = 256 << 20
DISK_CHUNK_BYTES = 4 << 20
DISK_S_MAX = 4.0
LINE_STREAMS = 4
LINE_BYTES_MAX = 64 << 20
LINE_S = 3.0
LINE_S_MAX = 8.0
GPU_S_MAX = 40
GPU_PROGRAM = """
import json, time
import torch
speeds = []
for index in range(torch.cuda.device_count()):
    with torch.cuda.device(index), torch.inference_mode():
        n, rounds = 8192, 20
        a = torch.randn(n, n, device="cuda", dtype=torch.float16)
        b = torch.randn(n, n, device="cuda", dtype=torch.float16)
        for _ in range(3):
            a @ b
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(rounds):
            a @ b
        torch.cuda.synchronize()
        speeds.append(2 * n**3 * rounds / (time.monotonic() - began) / 1e12)
        del a, b
        torch.cuda.empty_cache()
print(json.dumps(speeds))
"""


# -- memory


def copy_for(seconds, block_bytes, ready, answer):
    source, target = bytearray(block_bytes), bytearray(block_bytes)
    target[:] = source  # the pages exist from here on
    ready.wait()
    began, copied = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        target[:] = source
        copied += 1
    # Each copy reads and writes.
    answer.put(2 * copied * block_bytes / (time.monotonic() - began))


def memory_gb_s():
    """All cores copying blocks larger than their caches."""
    workers = max(1, min(len(os.sched_getaffinity(0)), MEMORY_WORKERS_MAX))
    block_bytes = MEMORY_BLOCK_BYTES
    room = free_memory_bytes() * MEMORY_SHARE_MAX
    while workers > 1 and 2 * block_bytes * workers > room:
        workers //= 2
    context = multiprocessing.get_context("fork")
    ready, answer = context.Barrier(workers), context.Queue()
    crew = [
        context.Process(target=copy_for, args=(MEMORY_S, block_bytes, ready, answer), daemon=True)
        for _ in range(workers)
    ]
    for each in crew:
        each.start()
    try:
        return sum(answer.get(timeout=20) for _ in crew) / 1e9
    finally:
        for each in crew:
            each.terminate()


def free_memory_bytes():
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


# -- disk


def disk_mb_s(folder):
    """Written through to the disk, and read back past the page cache where the system lets us."""
    if shutil.disk_usage(folder).free < 2 * DISK_BYTES:
        raise OSError("the disk is nearly full")
    path = os.path.join(folder, ".clorefleet-speed-%d" % os.getpid())
    chunk = mmap.mmap(-1, DISK_CHUNK_BYTES)  # page-aligned, as direct reads want it
    chunk.write(os.urandom(DISK_CHUNK_BYTES))  # not compressible
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            began, written = time.monotonic(), 0
            while written < DISK_BYTES and time.monotonic() - began < DISK_S_MAX:
                written += os.write(handle, chunk)
            os.fsync(handle)
            write = written / (time.monotonic() - began)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
        read = read_back(path, chunk)
        return {"disk_write_mb_s": round(write / 1e6, 1), "disk_read_mb_s": round(read / 1e6, 1)}
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def read_back(path, chunk):
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without direct reads
        handle = os.open(path, os.O_RDONLY)
    try:
        began, taken = time.monotonic(), 0
        while time.monotonic() - began < DISK_S_MAX:
            count = os.readv(handle, [chunk])
            if not count:
                break
            taken += count
        return taken / max(time.monotonic() - began, 1e-9)
    finally:
        os.close(handle)


# -- line


def line_mbit_s(sample):
    """Several streams of one file at once; bytes until the first of time and size is up."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = "%s/%s" % (endpoint, sample)
    lock, got, troubles = threading.Lock(), [0], []
    began = time.monotonic()

    def stream(index):
        start = index * (LINE_BYTES_MAX // LINE_STREAMS)
        request = urllib.request.Request(url, headers={"User-Agent": "clorefleet-node"})
        request.add_header("Range", "bytes=%d-" % start if index else "bytes=0-")
        try:
            with urllib.request.urlopen(request, timeout=LINE_S_MAX) as answer:
                while time.monotonic() - began < LINE_S and got[0] < LINE_BYTES_MAX:
                    chunk = answer.read(64 << 10)
                    if not chunk:
                        return
                    with lock:
                        got[0] += len(chunk)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # a small file has no such range
                troubles.append("the hub answers %d" % error.code)
        except OSError as error:
            troubles.append(type(error).__name__)

    crew = [threading.Thread(target=stream, args=(index,), daemon=True) for index in range(LINE_STREAMS)]
    for each in crew:
        each.start()
    for each in crew:
        each.join(max(0.0, LINE_S_MAX - (time.monotonic() - began)))
    elapsed = time.monotonic() - began
    if not got[0]:
        raise OSError(troubles[0] if troubles else "no byte came")
    if elapsed < 0.2 and got[0] < 8 << 20:
        raise OSError("the file is too small to tell")
    return got[0] * 8 / elapsed / 1e6


# -- GPUs


def gpu_tflops():
    run = subprocess.run(
        [sys.executable, "-c", GPU_PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=GPU_S_MAX
    )
    if run.returncode:
        last = run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise OSError("no torch" if last and "No module named 'torch'" in last[0] else "".join(last)[:100])
    return [round(speed, 1) for speed in json.loads(run.stdout)]


def main():
    folder, sample = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    found, skipped = {}, []

    def take(what, part):
        try:
            found.update(part())
        except Exception as error:
            skipped.append("%s: %s" % (what, str(error) or type(error).__name__))

    take("memory", lambda: {"memory_gb_s": round(memory_gb_s(), 2)})
    take("disk", lambda: disk_mb_s(folder))
    if sample:
        take("line", lambda: {"download_mbit_s": round(line_mbit_s(sample), 1)})
    take("gpu", lambda: {"gpu_tflops": gpu_tflops()})
    found["skipped"] = skipped
    print(json.dumps(found))


if __name__ == "__main__":
    main()
