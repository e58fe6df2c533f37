"""Convert a teacher's outputs for one image to stored tensors, and back to a batch.

Shape suffixes: B images, L levels, A base priors per position, H and W map size, N priors of one image
(levels, then rows, columns and base priors), M of them kept, D channels per prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.structures import DenseOutputs, HeadSpec, Levels

Entry = Mapping[str, Tensor]
_DETECTED = "detected."


def pack(outputs: DenseOutputs, image: int, dtype: torch.dtype, top: int | None) -> dict[str, Tensor]:
    """The tensors to store for one image.

    Args:
        outputs: those of a batch.
        image: its index in the batch.
        dtype: the storage dtype; values beyond its range are clamped.
        top: the number of priors to keep, by highest class score; all by default.

    Returns:
        CPU tensors: ``sizes`` (L, 2), ``feats.<level>`` C×H×W; the head's parts either complete, as
        ``<part>.<level>`` (A·D)×H×W, or as ``index`` (M,) and ``<part>`` (M, D). Detections are
        ``detected.<part>``, in full precision.
    """
    limit = torch.finfo(dtype).max

    def stored(tensor: Tensor) -> Tensor:
        return tensor.clamp(-limit, limit).to("cpu", dtype).contiguous()

    one = outputs.map(lambda level: level[image : image + 1])
    entry = {"sizes": torch.tensor([level.shape[-2:] for level in one.feats], dtype=torch.int32)}
    if outputs.detections is not None:
        found = outputs.detections[image]
        entry.update({f"{_DETECTED}{name}": part.to("cpu").contiguous() for name, part in found.items()})
    if one.feats and not one.feats[0].is_meta:
        entry.update({f"feats.{i}": stored(level[0]) for i, level in enumerate(one.feats)})
    parts = _head_parts(one)
    if top is None or not parts:
        for name, levels in parts.items():
            entry.update({f"{name}.{i}": stored(level[0]) for i, level in enumerate(levels)})
        return entry
    scores_N = one.top_scores()
    index_M = scores_N.topk(min(top, scores_N.numel())).indices.sort().values
    entry["index"] = index_M.to("cpu", torch.int32)
    for name, levels in parts.items():
        rows = [_to_rows(level[0], A) for level, A in zip(levels, one.spec.num_base_priors)]
        entry[name] = stored(torch.cat(rows)[index_M])
    return entry


def assemble(entries: Sequence[Entry], spec: HeadSpec, device: torch.device) -> DenseOutputs:
    """Combine the entries of a batch's images into one answer.

    Maps of smaller images are zero-padded at the right and bottom, as the images were.

    Args:
        entries: one per image, all with the same parts.
        spec: the layout of the teacher's head.
        device: device of the result, which is float32.
    """
    sizes_L2 = torch.stack([entry["sizes"].reshape(-1, 2) for entry in entries]).amax(0).tolist()
    maps = [_dense(entry, spec) for entry in entries]

    def batched(name: str) -> Levels:
        return tuple(
            _padded_stack([image[f"{name}.{level}"] for image in maps], height, width).to(device).float()
            for level, (height, width) in enumerate(sizes_L2)
        )

    names = {key.rpartition(".")[0] for key in maps[0]}
    if "feats" in names:
        feats = batched("feats")
    else:  # only their sizes are known
        feats = tuple(torch.empty(len(entries), 0, h, w, device="meta") for h, w in sizes_L2)
    known_N = None
    if "known" in names:
        known_N = torch.cat([level.permute(0, 2, 3, 1).flatten() for level in batched("known")]).bool()
    return DenseOutputs(
        spec=spec,
        feats=feats,
        cls_logits=batched("cls_logits") if "cls_logits" in names else None,
        bbox_pred=batched("bbox_pred") if "bbox_pred" in names else None,
        boxes=batched("boxes") if "boxes" in names else None,
        extra={
            name.removeprefix("extra."): batched(name) for name in sorted(names) if name.startswith("extra.")
        },
        known_N=known_N,
        detections=[_detected(entry, device) for entry in entries] if _is_detected(entries[0]) else None,
    )


def _is_detected(entry: Entry) -> bool:
    return any(name.startswith(_DETECTED) for name in entry)


def _detected(entry: Entry, device: torch.device) -> InstanceData:
    parts = {name.removeprefix(_DETECTED): part for name, part in entry.items() if name.startswith(_DETECTED)}
    return InstanceData(**{name: part.to(device) for name, part in parts.items()})


def _head_parts(outputs: DenseOutputs) -> dict[str, Levels]:
    parts = {"cls_logits": outputs.cls_logits, "bbox_pred": outputs.bbox_pred, "boxes": outputs.boxes}
    parts.update({f"extra.{name}": levels for name, levels in outputs.extra.items()})
    return {name: levels for name, levels in parts.items() if levels is not None}


def _to_rows(map_CHW: Tensor, A: int) -> Tensor:
    """(A·D)×H×W as (H·W·A)×D."""
    channels, height, width = map_CHW.shape
    return map_CHW.permute(1, 2, 0).reshape(height * width * A, channels // A)


def _dense(entry: Entry, spec: HeadSpec) -> dict[str, Tensor]:
    """The maps of one image; ``known`` marks the stored priors if only some were stored."""
    if "index" not in entry:
        return {
            name: tensor
            for name, tensor in entry.items()
            if name != "sizes" and not name.startswith(_DETECTED)
        }
    maps = {name: tensor for name, tensor in entry.items() if name.startswith("feats.")}
    sizes = entry["sizes"].tolist()
    counts = [height * width * A for (height, width), A in zip(sizes, spec.num_base_priors)]
    index_M = entry["index"].long()
    kept = {
        name: part
        for name, part in entry.items()
        if name not in maps and name not in ("sizes", "index") and not name.startswith(_DETECTED)
    }
    kept["known"] = torch.ones(len(index_M), 1, dtype=torch.bool)
    for name, part_MD in kept.items():
        rows_ND = part_MD.new_zeros(sum(counts), part_MD.shape[1])
        rows_ND[index_M] = part_MD
        for level, (rows, (height, width)) in enumerate(zip(rows_ND.split(counts), sizes)):
            maps[f"{name}.{level}"] = rows.reshape(height, width, -1).permute(2, 0, 1)
    return maps


def _padded_stack(maps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Pad C×H×W maps and stack them to B×C×height×width."""
    if all(image.shape[1:] == (height, width) for image in maps):
        return torch.stack(list(maps))
    result = maps[0].new_zeros(len(maps), maps[0].shape[0], height, width)
    for target, image in zip(result, maps):
        target[:, : image.shape[1], : image.shape[2]] = image
    return result
