"""The last step of the input pipeline: batches on the device, normalised and erased there, one ahead of the one in use."""

import torch

from utils.augment import fast as fast_transforms


class DeviceBatches:
    """Iterates over the batches of `loader` on `device`; other attributes are those of the loader.

    A batch is (images, labels or masks, …). Those of `fast_transforms.collate` become (images (B, 3, H, W) float32, labels, …),
    normalised by `mean` and `std`, with what was to be erased erased.
    Others, whose first element is a float tensor, are only moved. On a GPU a batch is copied and prepared on a stream of its
    own while the one before it is used. What follows the labels (the numbers of replaced samples) stays on the CPU.
    """

    def __init__(self, loader, device, mean=None, std=None, channels_last=False):
        self.loader, self.device, self.mean, self.std = loader, torch.device(device), mean, std
        self.layout = torch.channels_last if channels_last else torch.preserve_format

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        if self.device.type != "cuda":
            yield from map(self._prepare, self.loader)
            return
        side, waiting = torch.cuda.Stream(self.device), None
        for batch in self.loader:
            with torch.cuda.stream(side):
                prepared = self._prepare(batch)
            if waiting is not None:
                yield self._hand_over(waiting, side)
            waiting = prepared
        if waiting is not None:
            yield self._hand_over(waiting, side)

    def _prepare(self, batch):
        images, *rest = batch
        erase = None if torch.is_tensor(rest[0]) else rest.pop(0)
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        if images.dtype == torch.uint8:
            images = fast_transforms.finish(images, erase, self.mean, self.std)
        labels, *others = rest
        return (images, labels.to(self.device, non_blocking=True), *others)

    def _hand_over(self, batch, side):
        """The batch, when its own stream is done with it; its memory is not taken by others before ours is."""
        ours = torch.cuda.current_stream(self.device)
        ours.wait_stream(side)
        for part in batch:
            if part.is_cuda:
                part.record_stream(ours)
        return batch
