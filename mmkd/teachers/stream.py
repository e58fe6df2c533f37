"""A separate CUDA stream for the teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd.structures import DenseOutputs


class OwnStream:
    """Runs on a separate CUDA stream, created on first use."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def begin(self, inputs_BCHW: Tensor, compute: Callable[[], DenseOutputs]) -> Callable[[], DenseOutputs]:
        """Start computing; the result makes the current stream wait and returns the output.

        Args:
            inputs_BCHW: the input of ``compute``, on a CUDA device.
            compute: queues the work.
        """
        stream = self._stream = self._stream or torch.cuda.Stream(inputs_BCHW.device)
        stream.wait_stream(torch.cuda.current_stream(inputs_BCHW.device))
        with torch.cuda.stream(stream):
            outputs = compute()
        # Otherwise the allocator could reuse either's memory while the other stream still reads it.
        inputs_BCHW.record_stream(stream)

        def wait() -> DenseOutputs:
            current = torch.cuda.current_stream(inputs_BCHW.device)
            current.wait_stream(stream)
            for level in outputs.levels():
                if level.is_cuda:
                    level.record_stream(current)
            return outputs

        return wait
