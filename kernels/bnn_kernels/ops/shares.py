"""In which order blocks of filters and chunks of positions are computed.

All chunks with one block, then all with the next: its weights stay in the cache. Threads have ranges of that order, so
each would make some filters of the whole map, and read maps of which other cores hold the rest. So chunks come in as
many parts as there are threads, and each part has all blocks: a thread's range is a part of the map.
"""

from bnn_kernels.compile.jit import inline
from bnn_kernels.runtime.threads import get_num_threads

# A part has at least so many chunks, so that weights are read, and expanded, for some chunks at a time.
LEAST_CHUNKS = 4


def parts_of(chunks: int) -> int:
    """Return in how many parts so many chunks come."""
    return max(1, min(get_num_threads(), chunks // LEAST_CHUNKS))


@inline
def share_at(share, chunks, blocks, parts):
    """Return (block, chunk) of a share, 0 .. chunks * blocks - 1."""
    part = 0
    while share >= blocks * (chunks * (part + 1) // parts):
        part += 1
    first, end = chunks * part // parts, chunks * (part + 1) // parts
    inside = share - blocks * first
    block = inside // (end - first)
    return block, first + inside - block * (end - first)
