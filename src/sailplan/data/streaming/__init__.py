"""Rows that are read while training: each by one worker of one rank, in windows, for ever.

`training_loader` is in `loader`, which needs torch.
"""

from sailplan.data.streaming.encoded import EncodedStream
from sailplan.data.streaming.order import Position
from sailplan.data.streaming.settings import check_streaming, is_streaming
from sailplan.data.streaming.stream import ENTRY_ROWS, Stream, held_out_rows

__all__ = [
    "ENTRY_ROWS",
    "EncodedStream",
    "Position",
    "Stream",
    "check_streaming",
    "held_out_rows",
    "is_streaming",
]
